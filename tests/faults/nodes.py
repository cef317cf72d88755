"""A cluster of three raylets on this machine, of which two may be lost, or stopped and woken."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from ray.cluster_utils import Cluster

_NODE = {"num_cpus": 2, "object_store_memory": 100_000_000}
_HEALTH = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
_KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "5000", "RAY_grpc_client_keepalive_timeout_ms": "5000"}
"""Of a connection to a worker that is stopped, not ended: by Ray's own choice it would take seven minutes to notice."""
_WAKE_SECONDS = 60


class Nodes:
    """A head without CPUs, for drivers, and two nodes that may be lost."""

    def __init__(self) -> None:
        os.environ.update(_KEEPALIVE)  # of the drivers, too
        head = {**_NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": _HEALTH}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = {node.node_id: node for node in (self.cluster.add_node(**_NODE) for _ in range(2))}
        self._stopped: list[int] = []

    def lose(self, node: str) -> None:
        """Kills a node with all that runs on it; another one comes in its place."""
        self.cluster.remove_node(self.nodes.pop(node), allow_graceful=False)
        self._add()

    def stop(self, node: str) -> None:
        """Stops a node where it is, for the cluster to take it for dead; another one comes in its place."""
        raylet = self.nodes.pop(node).all_processes["raylet"][0].process.pid
        self._stopped += [*children(raylet), raylet]
        for pid in self._stopped:
            send(pid, signal.SIGSTOP)
        self._add()

    def wake(self) -> None:
        """Lets what was stopped go on, and find out."""
        for pid in self._stopped:
            send(pid, signal.SIGCONT)
        deadline = time.monotonic() + _WAKE_SECONDS
        while any(_is_alive(pid) for pid in self._stopped) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in self._stopped:
            send(pid, signal.SIGKILL)
        self._stopped = []

    def _add(self) -> None:
        node = self.cluster.add_node(wait=False, **_NODE)
        self.nodes[node.node_id] = node


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def _is_alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
