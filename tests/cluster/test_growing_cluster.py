"""A curation on a cluster that has no workers yet: Ray's own autoscaler, whose nodes are raylets of this machine."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.storage import Store
from tests.faults.nodes import children, send
from tests.faults.outcomes import read_outcome
from tests.small_pools import sound, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
STORE = 120_000_000
HEAD = "f" * 51 + "00000"
"""What Ray's provider of pretended nodes calls the head."""


@dataclass(frozen=True)
class Growing:
    """Where a cluster listens, what its drivers need in their environment, and what its autoscaler has written."""

    address: str
    environment: dict[str, str]
    log: Path


@pytest.fixture
def growing() -> Iterator[Growing]:
    """A head without CPUs; at most one node of 3 CPUs, and one of 2 CPUs and a GPU that no CUDA knows of."""
    folder = Path(tempfile.mkdtemp(prefix="grow"))  # a short path: sockets lie in it
    host = socket.gethostbyname(socket.gethostname())
    ports = free_ports(5)
    address = f"{host}:{ports[0]}"
    kinds = {"cpus": {"CPU": 3}, "gpu": {"CPU": 2, "GPU": 1}}
    types = {
        name: {"resources": {**has, "object_store_memory": STORE}, "node_config": {}, "max_workers": 1}
        for name, has in kinds.items()
    }
    provider = {"type": "fake_multinode", "gcs_address": address, "head_node_id": HEAD, "launch_multiple": True}
    provider |= dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True)
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": {**types, "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}}},
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("docker", "auth", "file_mounts")},
        **{f"{name}_commands": [] for name in lists},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    path = folder / "cluster.json"
    path.write_text(json.dumps(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    options = {
        "port": ports[0],
        "node-ip-address": host,
        "ray-client-server-port": ports[1],
        "dashboard-agent-listen-port": ports[2],
        "dashboard-agent-grpc-port": ports[3],
        "metrics-export-port": ports[4],
        "num-cpus": 0,
        "num-gpus": 0,
        "object-store-memory": STORE,
        "include-dashboard": "false",
        "temp-dir": folder,
        "autoscaling-config": path,
    }
    pretended = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
    pretended |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD, "RAY_CLOUD_INSTANCE_ID": HEAD}
    with (folder / "head.log").open("w") as output:
        head = subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"),
                *("start", "--head", "--block"),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env=environment | pretended,
            stdout=output,
            stderr=output,
        )
        try:
            yield Growing(address, environment, folder / "session_latest/logs/monitor.log")
        finally:
            for process in [*children(head.pid), head.pid]:
                send(process, signal.SIGKILL)
            head.wait()
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def curate(home: Path, pool: Path, resources: dict[str, int], *options: str, environment: dict[str, str]) -> str:
    """Runs the command; returns what it says of itself beside its table."""
    home.mkdir()
    config = {
        "pool": {"format": "webdataset", "path": f"{pool}/*.tar", "chunk_samples": 4},
        "workspace": f"{home}/work",
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": [{"step": "prune", "method": "dbp", "model": "raw", "clusters": 4, "keep_fraction": 0.5}],
        "report": False,
        "resources": resources,
    }
    path = home.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "jobs.main", "curate", str(path), *options]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_cluster_grows_from_nothing_to_what_the_config_asks_for(tmp_path, growing):
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(4):
        write_tar(pool / f"{number}.tar", sound(40)[10 * number : 10 * number + 10])
    here = {name: value for name, value in growing.environment.items() if not name.startswith("RAY_")}
    curate(tmp_path / "here", pool, {"workers": 2, "object_store_bytes": 200_000_000}, environment=here)
    there = {"workers": 3, "gpus": 1}
    said = curate(tmp_path / "there", pool, there, "--address", growing.address, environment=growing.environment)
    assert "waiting for the cluster to have 3 CPUs (resources.workers), it has 0" in said
    assert "Resized to 5 CPUs, 1 GPUs." in growing.log.read_text()
    assert read_outcome(Store(f"{tmp_path}/there")) == read_outcome(Store(f"{tmp_path}/here"))
