"""Room for actors on nodes that are not there."""

import pytest
import ray

from operators.errors import ConfigError
from pipeline.placement import num_actors


@pytest.fixture
def nodes(monkeypatch):
    """Nodes to fill in, each with its resources; a node without any and a dead one are there already."""
    live = [{}]
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [dead, *({"Alive": True, "Resources": node} for node in live)])
    return live


@pytest.mark.parametrize(
    ("cpus", "workers", "threads", "expected"),
    [
        ([3, 3], 6, 2, 2),  # a third one would wait for ever
        ([3, 3], 6, 1, 6),
        ([3, 3], 6, 3, 2),
        ([1, 5], 6, 2, 2),
        ([8], 4, 2, 2),  # no more than the run's workers
        ([8], 2, 4, 1),
    ],
)
def test_actors_have_all_their_cpus_on_one_node(nodes, cpus, workers, threads, expected):
    nodes += [{"CPU": float(number)} for number in cpus]
    assert num_actors(workers, threads) == expected
    assert num_actors(workers, threads, on_gpus=True) == 0


def test_each_takes_a_gpu_of_the_node_that_its_cpus_are_on(nodes):
    nodes += [{"CPU": 4.0, "GPU": 4.0}, {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}]
    assert num_actors(28, 2, on_gpus=True) == 3
    assert num_actors(4, 2, on_gpus=True) == 2
    assert num_actors(28, 16, on_gpus=True) == 0


def test_threads_that_no_node_has(nodes):
    nodes += [{"CPU": 2.0}, {"CPU": 4.0}]
    with pytest.raises(ConfigError, match=r"resources.threads must be at most the 4 CPUs of the largest node, got 5"):
        num_actors(6, 5)
