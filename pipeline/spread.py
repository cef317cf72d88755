"""Running one function over many small items on Ray tasks, with a bounded number in flight."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import ray

from pipeline.placement import cpu_work

Item = TypeVar("Item")
Result = TypeVar("Result")

_GROUPS_PER_WORKER = 8
_LARGEST_GROUP = 64


def spread(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[Result]:
    """Yields the result of every item, in the order in which they finish.

    Items travel in groups, so that a hundred thousand small ones do not cost a hundred thousand tasks; at most
    `2 x workers` groups are in flight, so neither the driver nor the object store fills up.

    The function lies in the object store once: it may hold arrays of any size, which the workers of a machine share.
    They cannot be written to.
    """
    if not items:
        return
    shared = ray.put(function)
    here = {} if num_gpus else cpu_work(workers)
    task = ray.remote(_run_group).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=3, **here)
    groups = iter(_grouped(items, workers))
    in_flight: list[Any] = []
    while True:
        for group in groups:
            in_flight.append(task.remote(shared, group))
            if len(in_flight) >= 2 * workers:
                break
        if not in_flight:
            return
        finished, in_flight = ray.wait(in_flight, num_returns=1)
        yield from cast("list[Result]", ray.get(finished[0]))


def balanced(items: Iterable[tuple[Item, int]], workers: int) -> list[list[Item]]:
    """Deals items to at most `workers` lists of nearly equal weight: heaviest first, each to the lightest list.

    Args:
        items: pairs of an item and its weight.
        workers: the number of lists at most; none of those returned is empty unless there are no items.
    """
    ranked = sorted(enumerate(items), key=lambda entry: (-entry[1][1], entry[0]))
    lists: list[list[Item]] = [[] for _ in range(max(1, min(workers, len(ranked))))]
    weights = [0] * len(lists)
    for _, (item, weight) in ranked:
        lightest = weights.index(min(weights))
        lists[lightest].append(item)
        weights[lightest] += weight
    return lists


def _run_group(function: Callable[[Item], Result], group: list[Item]) -> list[Result]:
    return [function(item) for item in group]


def _grouped(items: Sequence[Item], workers: int) -> Iterator[list[Item]]:
    size = max(1, min(_LARGEST_GROUP, len(items) // (workers * _GROUPS_PER_WORKER)))
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
