"""Looking at every shard once: what the views count, and which samples they choose to show.

Runs in Ray tasks. A task looks at several shards and gives back their merged answers, so the driver sees a few answers
for each worker, whatever the size of the pool; each holds a bounded number of bins and of chosen rows.

Legend: N rows of a shard.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.hashing import keyed_hash
from operators.uids import split_uids
from pipeline.artifact import read_columns
from pipeline.columns import uid_rows
from pipeline.report.histogram import Histogram, merge
from pipeline.spread import spread
from pipeline.storage import Store

Column = tuple[str, str]
"""(artifact, column), a struct's field as `struct.field`."""

_TASKS_PER_WORKER = 8


@dataclass(frozen=True, slots=True)
class Unit:
    """Where the parts of one shard lie: artifact name -> path."""

    index: int
    paths: Mapping[str, str]


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """A row that was chosen to be shown; the lowest (key, hash) of a group are."""

    key: float
    hash: int
    shard: int
    row: int


@dataclass(frozen=True)
class Frame:
    """Some columns of one shard."""

    shard: int
    hash_N: NDArray[np.uint64]
    columns: Mapping[Column, pa.ChunkedArray]

    def __getitem__(self, column: Column) -> pa.ChunkedArray:
        return self.columns[column]

    def flags(self, artifact: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(entered_N, kept_N) of a verdict step."""
        kept = self[artifact, "kept"]
        entered_N = kept.is_valid().to_numpy()
        return entered_N, kept.fill_null(False).to_numpy()

    def floats(self, column: Column) -> NDArray[np.float64]:
        """A column of numbers, null as NaN."""
        return pc.fill_null(pc.cast(self[column], pa.float64()), np.nan).to_numpy()  # type: ignore[no-any-return]

    def choose(
        self, names: Sequence[str], group_N: NDArray[np.integer], count: int, key_N: NDArray[np.float64] | None = None
    ) -> "dict[str, list[Choice]]":
        """The rows to show of each group: those with the lowest key, or a random few where there is no key.

        Args:
            names: of the groups.
            group_N: index into `names`, negative for rows of no group.
            count: rows of a group at most.
            key_N: finite.
        """
        rows_n = np.flatnonzero(group_N >= 0)
        keys_n = np.zeros(len(rows_n)) if key_N is None else key_N[rows_n]
        order_n = np.lexsort((self.hash_N[rows_n], keys_n, group_N[rows_n]))
        rows_n, keys_n = rows_n[order_n], keys_n[order_n]
        starts = np.searchsorted(group_N[rows_n], np.arange(len(names) + 1))
        return {
            name: [
                Choice(float(keys_n[i]), int(self.hash_N[rows_n[i]]), self.shard, int(rows_n[i]))
                for i in range(start, min(end, start + count))
            ]
            for name, start, end in zip(names, starts[:-1], starts[1:], strict=True)
            if end > start
        }


@dataclass
class Observation:
    """What one view saw: histograms, and rows to show by group."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    choices: dict[str, list[Choice]] = field(default_factory=dict)

    def absorb(self, other: "Observation", count: int) -> None:
        """Adds what was seen elsewhere; keeps the lowest `count` rows of each group."""
        for name, counts in other.histograms.items():
            self.histograms[name] = merge(self.histograms[name], counts) if name in self.histograms else counts
        for name, rows in other.choices.items():
            self.choices[name] = heapq.nsmallest(count, [*self.choices.get(name, []), *rows])


class Observer(Protocol):
    """What a view must offer to be part of the scan. Picklable."""

    @property
    def reads(self) -> Sequence[Column]:
        """The columns that `observe` looks at."""
        ...

    @property
    def shown(self) -> int:
        """Rows of a group at most."""
        ...

    def observe(self, frame: Frame) -> Observation:
        """Looks at one shard."""
        ...


def scan(
    store: Store, units: Sequence[Unit], observers: Sequence[Observer], seed: int, workers: int
) -> list[Observation]:
    """Shows every shard to every observer; returns what each of them saw of the whole pool."""
    size = max(1, -(-len(units) // (_TASKS_PER_WORKER * workers)))
    groups = [units[start : start + size] for start in range(0, len(units), size)]
    seen = [Observation() for _ in observers]
    for answers in spread(partial(observe_shards, store, tuple(observers), seed), groups, workers=workers):
        _absorb(seen, answers, observers)
    return seen


def observe_shards(store: Store, observers: Sequence[Observer], seed: int, units: Sequence[Unit]) -> list[Observation]:
    """What each observer saw of some shards."""
    seen = [Observation() for _ in observers]
    columns = sorted({("samples", "uid"), *(column for observer in observers for column in observer.reads)})
    for unit in units:
        frame = read_frame(store, unit, columns, seed)
        _absorb(seen, [observer.observe(frame) for observer in observers], observers)
    return seen


def read_frame(store: Store, unit: Unit, columns: Sequence[Column], seed: int) -> Frame:
    """Reads columns of one shard, each file once."""
    found: dict[Column, pa.ChunkedArray] = {}
    for artifact in sorted({artifact for artifact, _ in columns}):
        names = [name for owner, name in columns if owner == artifact]
        table = read_columns(store, unit.paths[artifact], sorted({name.partition(".")[0] for name in names}))
        for name in names:
            outer, _, inner = name.partition(".")
            found[artifact, name] = pc.struct_field(table[outer], inner) if inner else table[outer]
    hash_N = keyed_hash(*split_uids(uid_rows(found["samples", "uid"])), seed, "report")
    return Frame(unit.index, hash_N, found)


def _absorb(seen: Sequence[Observation], answers: Sequence[Observation], observers: Sequence[Observer]) -> None:
    for total, answer, observer in zip(seen, answers, observers, strict=True):
        total.absorb(answer, observer.shown)
