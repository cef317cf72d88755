"""How many actors can run at once. Ray waits without a word for an actor that finds no room, and so would a step."""

from collections.abc import Mapping
from typing import Any

import ray

from operators.errors import ConfigError


def num_actors(workers: int, threads: int, *, on_gpus: bool = False) -> int:
    """How many actors of a step that needs all of its actors at once.

    All CPUs of an actor are those of one node: two nodes of 3 CPUs have room for two actors of 2 threads, not three.

    Args:
        workers: CPU workers of the run.
        threads: of each actor, a CPU each.
        on_gpus: whether each takes a GPU as well.

    Returns:
        at least 1; with `on_gpus` 0 where no node has the room for one.

    Raises:
        ConfigError: no node has so many CPUs.
    """
    check_threads(threads)
    return min(max(1, workers // threads), room(threads, on_gpus=on_gpus))


def room(threads: int, *, on_gpus: bool = False) -> int:
    """How many actors of so many threads, and a GPU each where `on_gpus`, the nodes hold at once; 0 or more."""
    return sum(_room(node, threads, on_gpus=on_gpus) for node in _live_nodes())


def most_threads(workers: int, *, on_gpus: bool = False) -> int:
    """The most threads that each of so many actors can have while the nodes hold them all; 0 where they never do."""
    nodes = _live_nodes()
    largest = max(int(node.get("CPU", 0)) for node in nodes)
    rooms = (
        (threads, sum(_room(node, threads, on_gpus=on_gpus) for node in nodes)) for threads in range(largest, 0, -1)
    )
    return next((threads for threads, held in rooms if held >= workers), 0)


def check_threads(threads: int, key: str = "resources.threads") -> None:
    """Raises ConfigError, which blames a key, where no node could ever run a worker of so many threads."""
    largest = max(int(node.get("CPU", 0)) for node in _live_nodes())
    if threads > largest:
        raise ConfigError(f"{key} must be at most the {largest} CPUs of the largest node, got {threads}")


def _room(node: Mapping[str, float], threads: int, *, on_gpus: bool) -> int:
    actors = int(node.get("CPU", 0)) // threads
    return min(actors, int(node.get("GPU", 0))) if on_gpus else actors


def _live_nodes() -> list[Mapping[str, Any]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def most_memory() -> int:
    """Bytes that Ray counts as the memory of the largest node for tasks and actors; 0 where it counts none."""
    return max(int(node.get("memory", 0)) for node in _live_nodes())
