"""The parts of one shard, written into a temporary folder by the code that writes the real ones.

Each is written for a single row and for all sampled rows, so what a part costs by itself and what each of its rows
adds to it are told apart. Steps that need the whole pool to decide write numbers of the same kind at random.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.hashing import generator
from pipeline.artifact import parquet_bytes, publish_part
from pipeline.ledger import SCHEMA
from pipeline.ledger_writer import ShardVerdicts, ledger_rows
from pipeline.parts import Part
from pipeline.storage import Store
from pipeline.stream.work import SAMPLES_SCHEMA
from pipeline.units import Judge, Unit, Verdicts, attribute_unit, judge_unit

Content = Literal["number", "constant", "cluster", "of its cluster", "uid of few"]
"""What a column of details holds: a float64 of the row, the same for all rows, the row's cluster, a float64 that all
rows of a cluster share, a text of 32 digits in one row of a hundred."""


State = tuple[list[str | None], list[list[tuple[str, str]]]]


@dataclass(frozen=True)
class Line:
    """What something costs: `part` for each part, and `row` for each row."""

    part: float
    row: float

    def of(self, parts: float, rows: float) -> float:
        """The cost of so many parts with so many rows in all."""
        return self.part * parts + self.row * rows


@dataclass(frozen=True)
class Rehearsed:
    """Bytes in the workspace and CPU seconds of a step's parts, and the share of the rows that it keeps."""

    bytes: Line
    seconds: Line
    kept: float = 1.0


class Rehearsal:
    """Two shards: one of a single row, one of all sampled rows."""

    def __init__(self, folder: str, samples: pa.Table) -> None:
        self._store = Store(folder)
        self._tables = (samples.slice(0, 1), samples)
        self._entering: list[str | None] = [None, None]
        self._verdicts: list[list[tuple[str, str]]] = [[], []]
        self._samples: list[Part] = []
        publish = partial(publish_part, self._store, "samples", schema=SAMPLES_SCHEMA)
        publish(Part("", "warm", "", 0, 0, ""), [samples])
        seconds: list[float] = []
        for name, table in zip(("one", "all"), self._tables, strict=True):
            with _timed(seconds):
                self._samples.append(publish(Part("", name, "", 0, 0, ""), [table]))
        self.samples = Rehearsed(self._bytes(self._samples), self._line(seconds))

    @property
    def rows(self) -> int:
        """Of the larger shard."""
        return int(self._tables[1].num_rows)

    def verdicts(self, title: str, judge: Judge, columns: Mapping[str, str]) -> Rehearsed:
        """Judges the rows that still stand.

        Args:
            title: of the step.
            judge: what its tasks apply to the table of a shard.
            columns: of `samples` that it reads.
        """
        work = partial(judge_unit, self._store, title, judge)
        found = self._run(title, work, columns)
        self._entering = [part.path for part in found.parts]
        for verdicts, part in zip(self._verdicts, found.parts, strict=True):
            verdicts.append((title, part.path))
        counts = found.parts[1].counts
        return replace(found.cost, kept=counts["kept"] / max(1, counts["in"]))

    def attributes(self, title: str, contents: Mapping[str, Content], clusters: int = 1) -> Rehearsed:
        """Computes columns for the rows that still stand."""

        def attribute(table: pa.Table) -> pa.Table:
            return pa.table(_columns(contents, table.num_rows, clusters))

        return self._run(title, partial(attribute_unit, self._store, title, attribute), {"uid": "uid"}).cost

    def ledger(self) -> Rehearsed:
        """Gathers all verdicts so far, as a shard's rows and as a file of its own."""
        sizes: list[float] = []
        seconds: list[float] = []
        for part, verdicts in zip(self._samples, self._verdicts, strict=True):
            with _timed(seconds):
                table = ledger_rows(self._store, 1, 1, ShardVerdicts(part.path, tuple(verdicts)))
                table = table.sort_by([("uid", "ascending"), ("shard", "ascending"), ("row", "ascending")])
                sizes.append(len(parquet_bytes(table.select(SCHEMA.names))))
        return Rehearsed(self._line(sizes), self._line(seconds))

    def state(self) -> State:
        """Which verdicts there are, to come back to."""
        return list(self._entering), [list(verdicts) for verdicts in self._verdicts]

    def restore(self, state: State) -> None:
        """Forgets the verdicts that came after."""
        entering, verdicts = state
        self._entering, self._verdicts = list(entering), [list(found) for found in verdicts]

    def _run(self, title: str, work: Callable[[Unit], Part], columns: Mapping[str, str]) -> "_Run":
        # The first call of a kind is slower: imports, caches.
        part = self._samples[0]
        work(Unit("", "warm", 1, self._entering[0], ((part.path, columns),)))
        seconds: list[float] = []
        parts = []
        for part, entering in zip(self._samples, self._entering, strict=True):
            with _timed(seconds):
                parts.append(work(Unit("", part.id, part.rows, entering, ((part.path, columns),))))
        return _Run(parts, Rehearsed(self._bytes(parts), self._line(seconds)))

    def _bytes(self, parts: list[Part]) -> Line:
        """The files of a part: its rows, its commit, and its entry in the manifest, which repeats the commit."""
        beside = 2 * (len(json.dumps(asdict(parts[1]))) + _NAMES_BYTES)
        line = self._line([float(part.size) for part in parts])
        return Line(line.part + beside, line.row)

    def _line(self, two: list[float]) -> Line:
        one, all_ = two
        row = max(0.0, all_ - one) / max(1, self.rows - 1)
        return Line(max(0.0, one - row), row)


_NAMES_BYTES = 100
"""Of real names of shards and parts beyond the short ones here, and of the seal."""


@dataclass(frozen=True)
class _Run:
    parts: list[Part]
    cost: Rehearsed


@contextmanager
def rehearse(samples: pa.Table) -> Iterator[Rehearsal]:
    """A rehearsal in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Rehearsal(folder, samples)


def decided_at_random(kept: float, reason: str, details: Mapping[str, Content], clusters: int = 1) -> Judge:
    """A judge that keeps a share of the rows, with details like those of the step that it stands for."""

    def judge(table: pa.Table) -> Verdicts:
        rows = table.num_rows
        kept_N: NDArray[np.bool_] = generator(rows, reason).random(rows) < kept
        why = pa.array([reason] * rows, pa.string(), mask=kept_N)
        columns = _columns(details, rows, clusters)
        struct = pa.StructArray.from_arrays(list(columns.values()), names=list(columns)) if columns else None
        return Verdicts(kept_N, why, struct)

    return judge


def _columns(contents: Mapping[str, Content], rows: int, clusters: int) -> dict[str, pa.Array]:
    rng = generator(rows, "details")
    cluster_N = rng.integers(0, max(1, clusters), rows, dtype=np.int32)
    of_cluster_K = rng.random(max(1, clusters))
    made: dict[Content, Callable[[], pa.Array]] = {
        "number": lambda: pa.array(rng.random(rows)),
        "constant": lambda: pa.array(np.full(rows, 0.3)),
        "cluster": lambda: pa.array(cluster_N),
        "of its cluster": lambda: pa.array(of_cluster_K[cluster_N]),
        "uid of few": lambda: pa.array(
            [rng.bytes(16).hex() if i % 100 == 99 else None for i in range(rows)], pa.string()
        ),
    }
    return {name: made[content]() for name, content in contents.items()}


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds.append(time.process_time() - started)
