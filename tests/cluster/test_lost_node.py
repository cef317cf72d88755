"""A node that is lost while encoders run, and that no other replaces: its encoders must not crowd out the readers."""

import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline import curate
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from pipeline.storage import Store
from tests.faults.outcomes import WORK, read_outcome

pytestmark = [
    pytest.mark.ray,
    pytest.mark.faults,
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

NODE = {"num_cpus": 4, "object_store_memory": 150_000_000}
SHARDS, ROWS = 24, 25


def run(folder: Path, home: str, resources: dict[str, int]) -> None:
    config = {
        "pool": {"format": "webdataset", "path": f"{folder}/pool/*.tar", "chunk_samples": 5, "max_reject_fraction": 1},
        "workspace": f"{folder}/{home}/{WORK}",
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": [{"step": "semantic_dedup", "model": "raw", "clusters": 2, "epsilon": 0.01}],
        "report": False,
        "resources": resources,
    }
    curate.run_curation(Curation.model_validate(config))


def test_a_pass_goes_on_with_fewer_nodes(tmp_path, no_ray, monkeypatch):
    monkeypatch.setattr("pipeline.placement._WORTH_AN_ENCODER", 1)
    generate_pool(tmp_path, PoolSettings(samples=SHARDS * ROWS, samples_per_shard=ROWS))
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost = [cluster.add_node(**NODE), cluster.add_node(**NODE)][-1]
    workspace = tmp_path / "cluster" / WORK
    struck = []

    def strike() -> None:
        """Once a first piece shows that encoders are at work."""
        until = time.monotonic() + 120
        while not any((workspace / "pieces").glob("*/*/*")) and time.monotonic() < until:
            time.sleep(0.01)
        cluster.remove_node(lost, allow_graceful=False)
        struck.append(len(list((workspace / "samples").glob("*/*/part.json"))))

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        striker = threading.Thread(target=strike)
        striker.start()
        run(tmp_path, "cluster", {"workers": 8})
        striker.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert struck[0] < SHARDS
    run(tmp_path, "alone", {"workers": 2, "object_store_bytes": 200_000_000})
    assert read_outcome(Store(f"{tmp_path}/cluster")) == read_outcome(Store(f"{tmp_path}/alone"))
