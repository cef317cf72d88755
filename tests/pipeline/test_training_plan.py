"""Where the workers of a training go on clusters that are not there, and what is decided by it."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray

from operators.errors import ConfigError
from operators.training.ordering import Order
from pipeline.training.plan import decide_encoder, few_classes, place_workers
from pipeline.training.settings import Training

BATCH = 24


def config(**resources) -> Training:
    data = [{"pool": {"format": "webdataset", "path": "*.tar"}}]
    settings = {"workspace": "w", "data": data, "model": {"name": "ViT-B-32"}, "samples_seen": 96, "batch_size": BATCH}
    return Training.model_validate(settings | {"resources": resources})


@pytest.fixture
def cluster(monkeypatch):
    """A function that makes a cluster of nodes with (CPUs, GPUs)."""

    def make(*nodes: tuple[int, int]) -> None:
        live = [{"CPU": float(cpus), "GPU": float(gpus)} if gpus else {"CPU": float(cpus)} for cpus, gpus in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in live])

    return make


@pytest.mark.parametrize(
    ("nodes", "resources", "workers", "threads", "on_gpus"),
    [
        ([(4, 0)], {}, 1, 4, False),
        ([(4, 0)], {"workers": 2}, 2, 2, False),
        ([(4, 0)], {"workers": 3}, 3, 1, False),
        ([(4, 0), (4, 0)], {}, 1, 4, False),  # not 8: no node has them
        ([(6, 0), (3, 0)], {"workers": 2}, 2, 3, False),  # not 4: the second would wait for ever
        ([(6, 0), (3, 0)], {"workers": 3}, 3, 3, False),
        ([(8, 2)], {}, 2, 1, True),
        ([(8, 2)], {"threads": 4}, 2, 4, True),
        ([(8, 2)], {"gpus": False}, 1, 8, False),
        ([(8, 2), (0, 4)], {}, 2, 1, True),  # GPUs without a CPU beside them are of no use
        ([(8, 2)], {"workers": 1}, 1, 1, True),
    ],
)
def test_workers_fit_node_by_node(cluster, nodes, resources, workers, threads, on_gpus):
    cluster(*nodes)
    placement = place_workers(config(**resources))
    assert (placement.workers, placement.threads, placement.on_gpus) == (workers, threads, on_gpus)
    assert placement.resources == {"CPU": threads} | ({"GPU": 1} if on_gpus else {})
    assert placement.note == ""
    assert decide_encoder(config(), placement).precision == ("bfloat16" if on_gpus else "float32")


@pytest.mark.parametrize(
    ("nodes", "resources", "message"),
    [
        (
            [(4, 0)],
            {"gpus": True},
            "resources.gpus must be false where no node has a GPU and a CPU beside it, got true",
        ),
        ([(8, 2)], {"gpus": True, "workers": 3}, "resources.workers must be at most the 2 GPUs of the cluster, got 3"),
        ([(4, 0)], {"threads": 8}, "resources.threads must be at most the 4 CPUs of the largest node, got 8"),
        ([(4, 0), (2, 0)], {"threads": 3, "workers": 2}, r"at most the 1 for which .* with 3 threads .* each, got 2"),
        ([(2, 0)], {"workers": 3}, "resources.workers must be at most the 2 for which the nodes have room"),
        ([(8, 5)], {}, "batch_size must be a multiple of the 5 workers times accumulate 1, got 24"),
    ],
)
def test_workers_without_room_are_refused(cluster, nodes, resources, message):
    cluster(*nodes)
    with pytest.raises(ConfigError, match=message):
        place_workers(config(**resources))


def test_more_workers_than_gpus_train_on_cpus_and_it_is_said(cluster):
    cluster((8, 2))
    placement = place_workers(config(workers=4))
    assert (placement.on_gpus, placement.threads) == (False, 2)
    assert placement.note == "trains on CPUs: resources.workers asks for 4 and the cluster has 2 GPUs"


def pieces(*classes: set[int], count: int = 8, portion: int = 0) -> list[SimpleNamespace]:
    """Shards of these classes."""
    bits = [np.packbits(np.isin(np.arange(count), list(some))).tobytes() for some in classes]
    return [SimpleNamespace(classes=some, portion=portion) for some in bits]


@pytest.mark.parametrize(
    ("shards", "window", "found"),
    [
        (pieces(*({number % 8} for number in range(40))), 80, "80 samples that are shuffled together are of"),
        (pieces(*({number % 8} for number in range(40))), 800, ""),
        (pieces(*(set(range(8)) for _ in range(40))), 80, ""),
        (pieces(*({number % 8} for number in range(40))), 60, ""),  # too few to tell
        ([*pieces({0}, {1}), *pieces({0}, {1}, portion=1)], 40, "are of 1 of the 4 classes"),
        ([*pieces({0}, {1}), SimpleNamespace(classes=b"", portion=1)], 40, ""),  # captions of its own
    ],
)
def test_shards_sorted_by_class_are_told_where_windows_are_of_few(shards, window, found):
    names = tuple(map(str, range(len(shards))))
    order = Order(0, names, (40,) * len(shards), (1.0,) * len(shards), window)
    said = few_classes(order, shards)
    assert (found in said) if found else said == ""
