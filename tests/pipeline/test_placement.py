"""Room for actors on nodes that are not there."""

import pytest
import ray

from operators.errors import ConfigError
from pipeline.placement import Encoders, cpu_work, num_actors, num_on_gpus, place_encoders, tell_if_waiting


@pytest.fixture
def nodes(monkeypatch):
    """Nodes to fill in, each with its resources; a node without any and a dead one are there already."""
    live = [{}]
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}

    def listed():
        return [dead, *({"Alive": True, "NodeID": f"n{i}", "Resources": node} for i, node in enumerate(live))]

    monkeypatch.setattr(ray, "nodes", listed)
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
    assert num_on_gpus(None, threads) == 0


def test_each_takes_a_gpu_of_the_node_that_its_cpus_are_on(nodes):
    nodes += [{"CPU": 4.0, "GPU": 4.0}, {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}]
    assert num_on_gpus(None, 2) == 3
    assert num_on_gpus(2, 2) == 2
    assert num_on_gpus(0, 2) == 0
    assert num_on_gpus(None, 16) == 0


def test_threads_that_no_node_has(nodes):
    nodes += [{"CPU": 2.0}, {"CPU": 4.0}]
    with pytest.raises(ConfigError, match=r"resources.threads must be at most the 4 CPUs of the largest node, got 5"):
        num_actors(6, 5)


def shapes(*pairs):
    """Nodes of so many CPUs and GPUs."""
    return [{"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {}) for cpus, gpus in pairs]


@pytest.mark.parametrize(
    ("cluster", "gpus", "expected"),
    [
        ([(64, 0), (8, 1), (8, 1)], None, Encoders(2, 2, 1.0, True)),
        ([(64, 0), (96, 8)], 3, Encoders(3, 3, 1.0, True)),  # no more than the run may use
        ([(64, 0), (96, 8)], 16, Encoders(8, 16, 1.0, True)),  # the others come as they are asked for
        ([(64, 0), (3, 4)], None, Encoders(4, 4, 0.75, True)),  # every GPU, though it has no CPU to itself
        ([(64, 0), (2, 3)], None, Encoders(3, 3, 0.6666, True)),  # three of 0.6667 would not fit
        ([(64, 0), (0, 1)], None, Encoders(1, 1, 0.0, True)),
        ([(8, 1)], None, Encoders(1, 1, 1.0, True)),
        ([(8, 8)], None, Encoders(8, 8, 0.5, True)),  # the other half decodes: nobody else could
        ([(1, 1)], None, Encoders(1, 1, 0.25, True)),
        ([(64, 0)], 2, Encoders(1, 2, 1.0, True)),  # nodes with GPUs are still to come
    ],
)
def test_every_gpu_has_an_encoder_and_something_decodes(nodes, cluster, gpus, expected):
    nodes += shapes(*cluster)
    assert place_encoders(72, gpus, 1) == expected


def test_encoders_that_wait_for_a_gpu_say_so(nodes, caplog):
    nodes += shapes((64, 0))
    tell_if_waiting(place_encoders(64, 2, 1))
    (said,) = caplog.messages
    assert said.startswith("encoders wait for a node with a GPU (resources.gpus is 2), there is none")
    nodes += shapes((8, 1))
    tell_if_waiting(place_encoders(64, 2, 1))
    tell_if_waiting(place_encoders(64, 0, 1))
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("cluster", "workers", "expected"),
    [
        ([(4, 0)], 4, Encoders(4, 4, 0.75, False)),
        ([(4, 0)], 2, Encoders(2, 2, 0.5, False)),
        ([(1, 0)], 1, Encoders(1, 1, 0.25, False)),
        ([(2, 0)] * 4, 8, Encoders(8, 8, 0.4687, False)),
        ([(64, 0)] * 3, 192, Encoders(192, 192, 0.6588, False)),
        ([(2, 0), (1, 0)], 3, Encoders(3, 3, 0.0833, False)),
        ([(3, 0)], 9, Encoders(4, 9, 0.6666, False)),  # nodes are still to come
        ([(4, 2)], 4, Encoders(4, 4, 0.75, False)),
    ],
)
def test_encoders_on_cpus_leave_some_node_the_cpus_to_feed_them(nodes, cluster, workers, expected):
    nodes += shapes(*cluster)
    pool = place_encoders(workers, 0, 1e12)
    assert pool == expected
    assert sum(cpus for cpus, _ in cluster) - pool.now * pool.cpus >= 0.75 * len(cluster) or workers == 9
    if len(cluster) > 1:  # also when the largest node is lost, and its encoders start again on the others
        left = sorted(cpus for cpus, _ in cluster)[:-1]
        assert sum(left) - pool.now * pool.cpus >= 0.75 * len(left)


def test_a_small_pool_starts_few_encoders(nodes):
    nodes += shapes((4, 0))
    assert place_encoders(4, 0, 1_000_000).now == 1
    assert place_encoders(4, 0, 10_000_000).now == 3
    assert place_encoders(4, 0, 0).now == 1


def test_cpu_work_stays_off_gpu_nodes_where_the_others_have_the_cpus_asked_for(nodes):
    nodes += shapes((3, 0), (4, 1), (2, 0), (8, 2))
    assert cpu_work(5) == {"label_selector": {"ray.io/node-id": "!in(n2, n4)"}}
    assert cpu_work(6) == {}


def test_cpu_work_without_gpus_goes_anywhere(nodes):
    nodes += shapes((3, 0), (2, 0))
    assert cpu_work(2) == {}
