"""A Ray that `ray start` begins on free ports of this machine, with token authentication, and that ends whole."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.nodes import children, send

_TOKEN = "a-token-that-is-long-enough-for-ray-0123456789"
_HEALTH = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
_START_SECONDS = 120


class RayStart:
    """A head, and nodes that join it.

    Attributes:
        gcs: what `RAY_ADDRESS` is for a driver.
        address: of the dashboard.
        environment: of a command that may talk to it.
    """

    def __init__(self, environment: Mapping[str, str], num_cpus: int) -> None:
        # Ray's sockets lie in it, and the path of a socket has at most 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="w", dir="/tmp", ignore_cleanup_errors=True)
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
        beside = str(Path(sys.executable).parent)  # a job's `python` is that of the node's PATH
        search = {"PATH": os.pathsep.join([beside, environment["PATH"]])}
        self.environment = {**environment, **search, **secret, "RAY_USAGE_STATS_ENABLED": "0"}
        self._nodes: list[subprocess.Popen[bytes]] = []
        gcs, dashboard, client = (free_port() for _ in range(3))
        self.gcs, self.address = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        ports = {"port": gcs, "dashboard-port": dashboard, "ray-client-server-port": client}
        head = [f"--{name}={port}" for name, port in ports.items()]
        head += ["--head", "--dashboard-host=127.0.0.1"]
        self._start(num_cpus, *head, f"--system-config={json.dumps(_HEALTH)}")
        self._wait_for(self._answers)

    def join(self, num_cpus: int) -> int:
        """Adds a node; returns the process id of its raylet."""
        before = set(self._raylets())
        self._start(num_cpus, f"--address={self.gcs}")
        self._wait_for(lambda: set(self._raylets()) - before)
        return (set(self._raylets()) - before).pop()

    def lose(self, raylet: int) -> None:
        """Kills a node by its raylet, and waits until the cluster has found out."""
        before = self._alive()
        send(raylet, signal.SIGKILL)
        deadline = time.monotonic() + _START_SECONDS
        while self._alive() >= before:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def close(self) -> None:
        """Ends every process that was begun here."""
        begun = [pid for node in self._nodes for pid in [*children(node.pid), node.pid]]
        for pid in begun:
            send(pid, signal.SIGKILL)
        for node in self._nodes:
            node.wait()
        self._folder.cleanup()

    def _start(self, num_cpus: int, *options: str) -> None:
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        agents = [f"--{name}={free_port()}" for name in (*names, "runtime-env-agent-port")]
        # A folder each, as machines have: a node that unpacks a job's folder would remove that of its neighbour.
        folder = Path(self._folder.name, str(len(self._nodes)))
        agents.append(f"--temp-dir={folder}")
        workers = ["--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={num_cpus}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"]
        with Path(self._folder.name, f"node{len(self._nodes)}.log").open("wb") as log:
            node = subprocess.Popen(
                [*command, *options, *agents, *workers, "--object-store-memory=200000000"],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._nodes.append(node)

    def _raylets(self) -> list[int]:
        found = []
        for node in self._nodes:
            for pid in children(node.pid):
                with suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                        found.append(pid)
        return found

    def _answers(self) -> bool:
        with suppress(OSError):
            return self._get("/api/jobs/") == []
        return False

    def _alive(self) -> int:
        nodes = self._get("/api/v0/nodes")["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {_TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _wait_for(self, condition) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            said = [Path(self._folder.name, f"node{i}.log").read_text() for i in range(len(self._nodes))]
            assert all(node.poll() is None for node in self._nodes), said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
