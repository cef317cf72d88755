"""Exact selection over any number of workers: `operators.selection` spread over Ray actors.

Each actor holds the keys of its part of the rows (28 bytes a row, 1.5 times that at worst). The driver holds the search
(64 bytes a group) and the counters of one round, however many rows there are.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from operators.errors import InputError
from operators.selection import (
    Cutoffs,
    Keys,
    Search,
    Summary,
    begin,
    choose_digits,
    count_digits,
    cutoffs,
    last_kept,
    merge_summaries,
    narrow,
    num_kept,
    summarise,
    tighten,
)
from pipeline import placement
from pipeline.run import Plan
from pipeline.storage import Store
from pipeline.units import Unit, read_unit

Loader = Callable[[], tuple[NDArray[np.int32], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]]
"""Returns (group_N, key_N, high_N, low_N) of one part; picklable, and the same each time it is called."""

BLOCK_ROWS = 1 << 21
"""Rows that an actor looks at at once: bounds its temporary arrays to some 100 MB."""

# Between the short bursts of counting the actors wait, so they need not take whole CPUs from whoever else is running.
_ACTOR_OPTIONS = {"num_cpus": 0.25, "max_restarts": 4, "max_task_retries": 4}


def rows_to_keep(title: str, entering: int, keep_fraction: float | None, keep: int | None) -> int:
    """How many rows a step keeps, by the one of the two settings that is given.

    Raises:
        InputError: more than enter.
    """
    wanted = num_kept(keep_fraction or 0.0, entering) if keep is None else keep
    if wanted > entering:
        raise InputError(f"{title}.keep must be at most the {entering} rows that enter the step, got {wanted}")
    return wanted


def plan_cutoffs(plan: Plan, keys: Callable[[pa.Table], Keys], quotas_G: NDArray[np.int64]) -> Cutoffs:
    """`exact_cutoffs` of the rows that enter a step.

    Args:
        plan: the step's.
        keys: what is ranked of one shard's table; picklable.
        quotas_G: int64, rows to keep of each group.
    """
    groups = plan.groups(placement.num_actors(plan.run.workers, 1))  # all of them at once
    loaders = [partial(_load, plan.run.store, tuple(group), keys) for group in groups]
    return exact_cutoffs(loaders, quotas_G, len(groups))


def exact_cutoffs(loaders: Sequence[Loader], quotas_G: NDArray[np.int64], num_actors: int | None = None) -> Cutoffs:
    """Find the cut-offs that keep exactly `quotas_G` rows of each group, smallest (key, uid) first.

    The same answer for any number of actors and any split or order of the rows. An actor that dies starts again from
    its loaders and goes on with the current round.

    Args:
        loaders: one for each part of the rows; no uid may occur twice in a group.
        quotas_G: int64, rows to keep of each group, from 0 to the size of the group.
        num_actors: how many actors share the parts; by default one for each CPU of the cluster, and no more than parts.

    Raises:
        InputError: a quota is negative or exceeds its group.
    """
    num_actors = min(num_actors or int(ray.cluster_resources().get("CPU", 1)), len(loaders))
    remote = ray.remote(KeyHolder).options(**_ACTOR_OPTIONS)
    # Ray restarts an actor with what it was first given, for as long as somebody here refers to that (issue 53727).
    held = [ray.put(list(loaders[i::num_actors])) for i in range(num_actors)]
    with ended([remote.remote(part, quotas_G.size) for part in held]) as actors:
        return find_cutoffs(actors, quotas_G)


@contextlib.contextmanager
def ended(actors: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Ends actors with the context. Ray would once nobody refers to them, which a cycle of references may put off.

    A step that needs every CPU would wait for that, and nothing that waits collects cycles.
    """
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def find_cutoffs(actors: Sequence[Any], quotas_G: NDArray[np.int64]) -> Cutoffs:
    """`exact_cutoffs` for actors that hold the keys already: handles of `KeyHolder`, or of what has its three methods.

    Raises:
        InputError: a quota is negative or exceeds its group.
    """
    summaries = _arrivals(actor.summarise.remote() for actor in actors)
    search = begin(reduce(merge_summaries, summaries, summarise(_no_keys(), quotas_G.size)), quotas_G)
    while not search.done:
        search_ref = ray.put(search)
        counts = _arrivals(actor.count_digits.remote(search_ref) for actor in actors)
        search = choose_digits(search, _total(counts))

    rule = cutoffs(search)
    lasts = _arrivals(actor.last_kept.remote(rule) for actor in actors)
    return tighten(rule, reduce(np.maximum, lasts, np.zeros(quotas_G.size, np.uint64)))


class KeyHolder:
    """The actor: the keys of some parts, and those of them that are still undecided.

    Loads at its first task, so a loader's error arrives as that error.
    """

    def __init__(self, loaders: Sequence[Loader], num_groups: int) -> None:
        self._loaders = loaders
        self._num_groups = num_groups

    @cached_property
    def _blocks(self) -> list[Keys]:
        return [block for load in self._loaders for block in _split(Keys(*load()))]

    @cached_property
    def _undecided(self) -> list[Keys]:
        return list(self._blocks)

    def summarise(self) -> Summary:
        """The summary of this actor's rows."""
        start = summarise(_no_keys(), self._num_groups)
        return reduce(merge_summaries, (summarise(block, self._num_groups) for block in self._blocks), start)

    def count_digits(self, search: Search) -> NDArray[np.uint32]:
        """This actor's counts of one round; 32 bits halve what travels."""
        return _total(self._counts(search)).astype(np.uint32)

    def last_kept(self, rule: Cutoffs) -> NDArray[np.uint64]:
        """The last value key that this actor keeps in each group."""
        return reduce(
            np.maximum, (last_kept(rule, block) for block in self._blocks), np.zeros(self._num_groups, np.uint64)
        )

    def _counts(self, search: Search) -> Iterator[NDArray[np.int64]]:
        yield count_digits(search, _no_keys())
        for i, block in enumerate(self._undecided):
            rows = narrow(search, block)
            if rows.group_N.size <= block.group_N.size // 2:  # a copy is worth its memory
                self._undecided[i] = rows
            yield count_digits(search, rows)


def _load(store: Store, units: Sequence[Unit], keys: Callable[[pa.Table], Keys]) -> Keys:
    """The keys of some shards, one shard's table in memory at a time: metadata is a hundred times larger than keys."""
    parts = [keys(read_unit(store, unit)[0]) for unit in units]
    return Keys(*map(np.concatenate, zip(*parts, strict=True)))


def _arrivals(futures: Iterable[Any]) -> Iterator[Any]:
    """Results as they come, one in memory at a time. Everything merged here is a sum, a minimum or a maximum."""
    waiting = list(futures)
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1)
        yield ray.get(ready.pop())


def _total(parts: Iterable[NDArray[Any]]) -> NDArray[np.int64]:
    """The sum of arrays of one shape, added up in place."""
    parts = iter(parts)
    total = next(parts).astype(np.int64)
    for part in parts:
        total += part
    return total


def _split(keys: Keys) -> list[Keys]:
    return [keys.take(slice(i, i + BLOCK_ROWS)) for i in range(0, keys.group_N.size, BLOCK_ROWS)]


def _no_keys() -> Keys:
    none = np.zeros(0, np.uint64)
    return Keys(none.astype(np.int32), none, none, none)
