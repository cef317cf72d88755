"""Training over two raylets of one machine: as one worker with the same batch does, and through the loss of a node."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from pipeline.progress import Progress
from pipeline.training.examples import open_portions
from pipeline.training.settings import Training
from pipeline.training.trainer import TrainingResult, train
from tests.small_trainings import losses, training, write_pool

pytestmark = [
    pytest.mark.ray,
    pytest.mark.faults,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STEPS, BATCH = 200, 16


@pytest.fixture
def cluster(no_ray):
    """A head with room for two workers, and a node with room for one."""
    node = {"num_cpus": 1, "object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 2, "include_dashboard": False})
    cluster.second = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def config(folder: Path, workspace: str, workers: int) -> Training:
    changes = {
        "samples_seen": STEPS * BATCH,
        "checkpoint_every": 50,
        "resources": {"workers": workers, "threads": 1, "spread": True},
    }
    return training(folder, workspace, **changes)


def run(settings: Training) -> TrainingResult:
    portions = open_portions(settings, workers=2, progress=Progress())
    return train(settings, portions, workers=2, progress=Progress())


def test_two_nodes_train_as_one_worker_does_also_when_one_of_them_is_lost(tmp_path, cluster):
    write_pool(tmp_path)
    alone = losses(run(config(tmp_path, "alone", workers=1)), STEPS)
    whole = run(config(tmp_path, "whole", workers=2))
    np.testing.assert_allclose(losses(whole, STEPS), alone, atol=1e-4)

    def lose_a_node() -> None:
        while not list((tmp_path / "lost").glob("training/*/checkpoints/000000050/manifest.json")):
            time.sleep(0.02)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thief = threading.Thread(target=lose_a_node)
    thief.start()
    lost = run(config(tmp_path, "lost", workers=2))
    thief.join()
    assert len([node for node in ray.nodes() if node["Alive"]]) == 1
    assert losses(lost, STEPS) == losses(whole, STEPS)
    expected = load_file(f"{whole.model_path}/open_clip_model.safetensors")
    for name, tensor in load_file(f"{lost.model_path}/open_clip_model.safetensors").items():
        np.testing.assert_allclose(tensor.numpy(), expected[name].numpy(), atol=1e-5)
