"""Where work goes: which nodes have room for how many workers, and how much of a node each of them takes.

Ray waits without a word for what finds no room. So what needs all of its actors at once (k-means, a scoring) takes as
many as the nodes of this moment hold. What can begin with one worker (tasks, a pool of encoders) asks for all that the
run may use; Ray's autoscaler, where there is one, sees what waits and brings nodes.

Work without GPUs goes to nodes without GPUs as long as those have a CPU free: that is how Ray places it.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from operators.errors import ConfigError

_log = logging.getLogger(__name__)

_READER_CPUS = 0.75
"""What reading and decoding need at least, on some node, beside any encoders: a task of each."""

_WORTH_AN_ENCODER = 4 * 2**20
"""Bytes of shards: some fifty photographs, which a ViT-B/32 encodes on a core in about the time of its start."""


def num_actors(workers: int, threads: int) -> int:
    """How many actors of a step that needs all of its actors at once.

    All CPUs of an actor are those of one node: two nodes of 3 CPUs have room for two actors of 2 threads, not three.

    Args:
        workers: CPU workers of the run.
        threads: of each actor, a CPU each.

    Returns:
        at least 1.

    Raises:
        ConfigError: no node has so many CPUs.
    """
    check_threads(threads)
    return min(max(1, workers // threads), room(threads))


def num_on_gpus(gpus: int | None, threads: int = 1) -> int:
    """The same for actors that take a GPU each as well: as many as the GPUs that the run may use (None: all).

    Returns:
        0 where no node has the room for one.
    """
    held = room(threads, on_gpus=True)
    return held if gpus is None else min(gpus, held)


def room(threads: int, *, on_gpus: bool = False) -> int:
    """How many actors of so many threads, and a GPU each where `on_gpus`, the nodes hold at once; 0 or more."""
    return sum(_room(node, threads, on_gpus=on_gpus) for node in _live_nodes())


def most_threads(workers: int, *, on_gpus: bool = False) -> int:
    """The most threads that each of so many actors can have while the nodes hold them all; 0 where they never do."""
    nodes = _live_nodes()
    largest = max(_cpus(node) for node in nodes)
    rooms = (
        (threads, sum(_room(node, threads, on_gpus=on_gpus) for node in nodes)) for threads in range(largest, 0, -1)
    )
    return next((threads for threads, held in rooms if held >= workers), 0)


def check_threads(threads: int, key: str = "resources.threads") -> None:
    """Raises ConfigError, which blames a key, where no node could ever run a worker of so many threads."""
    largest = max(_cpus(node) for node in _live_nodes())
    if threads > largest:
        raise ConfigError(f"{key} must be at most the {largest} CPUs of the largest node, got {threads}")


@dataclass(frozen=True)
class Encoders:
    """A pool of encoders.

    Attributes:
        now: how many begin, 1 or more.
        most: how many there may be once nodes have come.
        cpus: of each, at most 1.
        on_gpus: whether each takes a GPU as well.
    """

    now: int
    most: int
    cpus: float
    on_gpus: bool


def encoders_on_cpus(workers: int, size: float) -> int:
    """How many encoders a pass may start on CPUs: one a worker, fewer for a small pool.

    Args:
        workers: CPU workers of the run.
        size: bytes of the shards to go over.
    """
    return max(1, min(workers, math.ceil(size / _WORTH_AN_ENCODER)))


def place_encoders(workers: int, gpus: int | None, size: float) -> Encoders:
    """A pool that uses every GPU, or without any every CPU, and leaves readers and decoders what feeds it.

    On GPUs an encoder keeps a CPU to itself, or its share of them on a node that has fewer CPUs than GPUs. Where no
    other node could decode, half of a node's CPUs stay free of encoders.

    On CPUs there is an encoder a worker, if the pool is worth that many. Each leaves so much that the nodes have a CPU
    free on average, so some node has one in one piece: with all CPUs of a cluster but one taken, four nodes of 2 kept a
    quarter each, and decoded no image. Of several nodes the largest may be lost while encoders run: they start again on
    the others, all of them if there is room, and even then readers and decoders have what they need.

    Args:
        workers: CPU workers of the run.
        gpus: how many it may use, also such as are still to come; None for all that there are.
        size: bytes of the shards to go over.
    """
    nodes = _live_nodes()
    there = sum(_gpus(node) for node in nodes)
    most = there if gpus is None else gpus
    if most:
        share = min([1.0, *_shares_beside_gpus(nodes)])
        return Encoders(max(1, min(there, most)), most, _floor(share), on_gpus=True)
    workers = encoders_on_cpus(workers, size)
    cpus = [min(_cpus(node), workers) for node in nodes if _cpus(node)]
    smallest = min(cpus, default=1)
    share = max(smallest - 1, 1 - _READER_CPUS) / smallest
    if len(cpus) > 1:
        left = sum(cpus) - max(cpus) - _READER_CPUS * (len(cpus) - 1)
        share = min(share, left / min(workers, sum(cpus)))
    share = _floor(share)
    held = sum(int(_cpus(node) / share) for node in nodes)
    return Encoders(max(1, min(workers, held)), workers, share, on_gpus=False)


def tell_if_waiting(encoders: Encoders) -> None:
    """Says that encoders wait, where they need a GPU and no node has one yet; on one machine none will come."""
    if encoders.on_gpus and not any(_gpus(node) for node in _live_nodes()):
        _log.warning(
            "encoders wait for a node with a GPU (resources.gpus is %d), there is none; on CPUs they run with "
            "resources.gpus 0, and models.*.precision as it is on GPUs keeps what is embedded already",
            encoders.most,
        )


def cpu_work(workers: int) -> dict[str, Any]:
    """Options of Ray for the tasks of a step without GPUs, which is spread over so many CPU workers.

    Where the nodes without GPUs have all the CPUs that the run asks for, it stays on them, so that an autoscaler may
    take idle GPU nodes away. Where they have fewer, it goes to the GPU nodes' CPUs, too, once theirs are taken. (Ray's
    `fallback_strategy` would take a GPU node as soon as the others are busy.)
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    beside_gpus = sorted(node["NodeID"] for node in nodes if _gpus(node["Resources"]))
    elsewhere = sum(_cpus(node["Resources"]) for node in nodes if not _gpus(node["Resources"]))
    if not beside_gpus or elsewhere < workers:
        return {}
    return {"label_selector": {"ray.io/node-id": f"!in({', '.join(beside_gpus)})"}}


def most_memory() -> int:
    """Bytes that Ray counts as the memory of the largest node for tasks and actors; 0 where it counts none."""
    return max(int(node.get("memory", 0)) for node in _live_nodes())


def _shares_beside_gpus(nodes: Sequence[Mapping[str, float]]) -> list[float]:
    """CPUs that an encoder could have on each node with GPUs."""
    elsewhere = any(_cpus(node) and not _gpus(node) for node in nodes)
    shapes = [(_cpus(node), _gpus(node)) for node in nodes if _gpus(node)]
    return [max(0.0, cpus - (0 if elsewhere else max(cpus / 2, _READER_CPUS))) / gpus for cpus, gpus in shapes]


def _floor(cpus: float) -> float:
    """Down to Ray's own precision, since three times 0.6667 CPUs are more than two."""
    return math.floor(cpus * 10_000) / 10_000


def _room(node: Mapping[str, float], threads: int, *, on_gpus: bool) -> int:
    actors = _cpus(node) // threads
    return min(actors, _gpus(node)) if on_gpus else actors


def _cpus(node: Mapping[str, float]) -> int:
    return int(node.get("CPU", 0))


def _gpus(node: Mapping[str, float]) -> int:
    return int(node.get("GPU", 0))


def _live_nodes() -> list[Mapping[str, Any]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
