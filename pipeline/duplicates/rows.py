"""The rows of a deduplication: from the shards into bins of blocks, and what was found out about them.

Columns of a bin: `partition`, `block`; `value`, `high`, `low`: the key that orders rows; `unit`, `row`: where they come
from; `embedding`.

Where verdicts of an earlier run stand, their rows come first: those that were kept have the value 0, those that were
dropped, which take part in mode `reference` alone, 1. Only the new rows, from 2 on, are decided and reported.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.duplicates import GOES, Block, Rule, distinct_rows
from operators.embeddings import cosine_pairs
from operators.uids import join_uids, split_uids
from pipeline.artifact import parquet_bytes
from pipeline.columns import embeddings, fixed_binary, uid_rows
from pipeline.duplicates.layout import Layout
from pipeline.findings import write_found
from pipeline.shuffle import PARTITION
from pipeline.storage import Store
from pipeline.units import Unit, read_standing, read_unit

FOUND = pa.schema(
    [
        ("unit", pa.int32()),
        ("row", pa.int64()),
        ("first_high", pa.uint64()),
        ("first_low", pa.uint64()),
        ("similarity", pa.float64()),
        ("group_size", pa.int64()),
    ]
)
"""The rows that go."""

GROUPS = pa.schema([("group", pa.string()), ("size", pa.int64()), ("uid", pa.string()), ("kept", pa.bool_())])
"""The members of every group of two or more; a group is called by the uid of its first member."""

REPORT = pa.schema(
    [
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("groups", pa.string()),
        ("removed", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int64())),
    ]
)
"""What the driver hears of a bin: its findings, its groups, rows that go at each epsilon, groups by log2 of size."""

SIZES = 40

_STOOD_DROPPED, _FIRST_NEW = np.uint64(1), np.uint64(2)


@dataclass(frozen=True)
class Job:
    """What all tasks of one deduplication share.

    Attributes:
        store: the workspace.
        folder: of this attempt; nobody else writes there.
        layout: the blocks.
        rule: how they are decided.
        clusters: path of the centroids.
        epsilon: the largest compared.
        priority: gives the uint64 of each row of a table by which rows are ordered; lowest first.
        searched_K: bool, where some rows stand: clusters whose rows are compared, as they or their neighbours hold new
            ones. None where all rows are new.
    """

    store: Store
    folder: str
    layout: Layout
    rule: Rule
    clusters: str
    epsilon: float
    priority: Callable[[pa.Table], NDArray[np.uint64]]
    searched_K: NDArray[np.bool_] | None = None

    def stands(self, key_N3: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows stand, by their keys."""
        return np.zeros(len(key_N3), dtype=bool) if self.searched_K is None else key_N3[:, 0] < _FIRST_NEW

    def stood_dropped(self, key_N3: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows stand as dropped, by their keys."""
        return np.zeros(len(key_N3), dtype=bool) if self.searched_K is None else key_N3[:, 0] == _STOOD_DROPPED


class Members(NamedTuple):
    """Rows of one block, in the order of their keys.

    Attributes:
        x_ND: float16 embeddings.
        key_N3: uint64.
        unit_N, row_N: where they come from.
    """

    x_ND: NDArray[np.float16]
    key_N3: NDArray[np.uint64]
    unit_N: NDArray[np.int32]
    row_N: NDArray[np.int64]

    def take(self, chosen: slice | NDArray[np.int64]) -> "Members":
        """Some of the rows."""
        return Members(self.x_ND[chosen], self.key_N3[chosen], self.unit_N[chosen], self.row_N[chosen])


class Copies(NamedTuple):
    """Rows of a block that equal an earlier one byte for byte: they follow it, and are compared with nobody.

    Attributes:
        of_M: int64, positions of those that they equal.
        key_M3, unit_M, row_M: as in `Members`.
        similarity_M: float64, the exact cosine of a row with itself.
    """

    of_M: NDArray[np.int64]
    key_M3: NDArray[np.uint64]
    unit_M: NDArray[np.int32]
    row_M: NDArray[np.int64]
    similarity_M: NDArray[np.float64]

    def take(self, chosen: NDArray[np.bool_]) -> "Copies":
        """Some of the copies."""
        return Copies(*(array[chosen] for array in self))  # type: ignore[arg-type]


def produce(job: Job, item: tuple[int, Unit]) -> pa.Table:
    """The rows of one shard that have an embedding and take part, each with its bin."""
    index, unit = item
    table, value_N = _rank(job, unit)
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    x_ND, cluster_N = embeddings(table["embedding"]), table["cluster"].to_numpy().astype(np.int64)
    block_N = job.layout.blocks_of(job.store, cluster_N, x_ND, (high_N, low_N))
    return pa.table(
        {
            PARTITION: pa.array(job.layout.bin_L[block_N], pa.int32()),
            "block": pa.array(block_N, pa.int64()),
            "value": value_N,
            "high": high_N,
            "low": low_N,
            "unit": np.full(len(high_N), index, dtype=np.int32),
            "row": table["row"],
            "embedding": fixed_binary(x_ND),
        }
    )


def _rank(job: Job, unit: Unit) -> tuple[pa.Table, NDArray[np.uint64]]:
    """The rows of one shard that take part, and the value that orders them."""
    table, kept_N = read_standing(job.store, unit) if unit.stands else (read_unit(job.store, unit)[0], None)
    taking_part = pc.and_(table["embedding"].is_valid(), table["cluster"].is_valid())
    if job.searched_K is not None:
        searched_N = job.searched_K[table["cluster"].fill_null(0).to_numpy()]
        taking_part = pc.and_(taking_part, pa.array(searched_N))
    if kept_N is not None and job.rule.mode == "cover":
        taking_part = pc.and_(taking_part, pa.array(kept_N))
    table = table.filter(taking_part)
    if kept_N is not None:
        return table, np.where(kept_N[taking_part.to_numpy()], np.uint64(0), _STOOD_DROPPED)
    value_N = job.priority(table)
    return table, value_N if job.searched_K is None else np.maximum(value_N, _FIRST_NEW)


def split_blocks(job: Job, table: pa.Table) -> Iterator[tuple[int, Members, Copies]]:
    """Each block of a table with its distinct members and their new copies, blocks ascending."""
    block_N = table["block"].to_numpy()
    key_N3 = np.stack([table[name].to_numpy() for name in ("value", "high", "low")], axis=1)
    unit_N, row_N = table["unit"].to_numpy(), table["row"].to_numpy()
    x_ND = embeddings(table["embedding"])
    order_N = np.lexsort((*key_N3.T[::-1], block_N))
    ends = np.flatnonzero(np.diff(block_N[order_N])) + 1
    for here in np.split(order_N, ends) if len(order_N) else []:
        members, copies = _part_copies(Members(x_ND, key_N3, unit_N, row_N).take(here))
        yield int(block_N[here[0]]), members, copies.take(~job.stands(copies.key_M3))


def _part_copies(members: Members) -> tuple[Members, Copies]:
    distinct_M, equal_N = distinct_rows(members.x_ND)
    is_copy_N = np.ones(len(equal_N), dtype=bool)
    is_copy_N[distinct_M] = False
    copies_M = np.flatnonzero(is_copy_N)
    twins_MD = members.x_ND[copies_M]
    return members.take(distinct_M), Copies(
        equal_N[copies_M],
        members.key_N3[copies_M],
        members.unit_N[copies_M],
        members.row_N[copies_M],
        cosine_pairs(twins_MD, twins_MD),
    )


def group_sizes(label_N: NDArray[np.int64], of_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """size_N: how many rows the group of each row has, copies included.

    Args:
        label_N: int64, the group of each distinct row, a position among them.
        of_M: int64, the rows that copies equal.
    """
    counts_G = np.bincount(label_N, minlength=len(label_N)) + np.bincount(label_N[of_M], minlength=len(label_N))
    sizes_N: NDArray[np.int64] = counts_G[label_N]
    return sizes_N


class Results:
    """What was decided about some blocks, gathered to be written."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._found: list[pa.Table] = []
        self._groups: list[pa.Table] = []
        self._removed = np.zeros(len(job.rule.threshold_E), np.int64)
        self._sizes = np.zeros(SIZES, np.int64)

    def add(
        self, members: Members, copies: Copies, block: Block, group_N2: NDArray[np.uint64], size_N: NDArray[np.int64]
    ) -> None:
        """Takes in a decided block.

        Args:
            members: its distinct rows.
            copies: of them.
            block: what was decided of the distinct rows.
            group_N2: uint64, halves of the uid of the first member of each row's group.
            size_N: int64, members of the group, copies included.
        """
        goes_N = block.status_EN[self._job.rule.chosen] == GOES
        self._removed += (block.status_EN == GOES).sum(axis=1) + len(copies.of_M)
        goes_M, of_M = np.flatnonzero(goes_N), copies.of_M
        follows_M = goes_N[of_M]
        first_M3 = np.where(follows_M[:, None], block.first_N3[of_M], members.key_N3[of_M])
        similarity_M = np.where(follows_M, block.similarity_N[of_M], copies.similarity_M)
        for unit_M, row_M, first, similarity, size in (
            (
                members.unit_N[goes_M],
                members.row_N[goes_M],
                block.first_N3[goes_M],
                block.similarity_N[goes_M],
                size_N[goes_M],
            ),
            (copies.unit_M, copies.row_M, first_M3, similarity_M, size_N[of_M]),
        ):
            self._found.append(pa.table([unit_M, row_M, first[:, 1], first[:, 2], similarity, size], schema=FOUND))
        many_M = np.flatnonzero(size_N > 1)
        stays_N = ~(goes_N | self._job.stood_dropped(members.key_N3))
        for group_M2, size_M, key_M3, stays_M in (
            (group_N2[many_M], size_N[many_M], members.key_N3[many_M], stays_N[many_M]),
            (group_N2[of_M], size_N[of_M], copies.key_M3, np.zeros(len(of_M), dtype=bool)),
        ):
            columns = [_hex(group_M2), size_M, _hex(key_M3[:, 1:]), stays_M]
            self._groups.append(pa.table(columns, schema=GROUPS))
        leads_M = many_M[(members.key_N3[many_M, 1:] == group_N2[many_M]).all(axis=1)]
        self._sizes += np.bincount(np.frexp(size_N[leads_M])[1] - 1, minlength=SIZES)

    def write(self, bin_: int) -> pa.Table:
        """Writes what was found and tells of it."""
        job = self._job
        groups = pa.concat_tables([GROUPS.empty_table(), *self._groups])
        groups_path = f"{job.folder}/groups/{bin_:06d}.parquet" if groups.num_rows else None
        if groups_path:
            job.store.replace(groups_path, parquet_bytes(groups))
        found = pa.concat_tables([FOUND.empty_table(), *self._found])
        receipt = write_found(job.store, f"{job.folder}/found/{bin_:06d}.parquet", found)
        path, rows = (receipt[name].to_pylist() or [None] for name in receipt.column_names)
        columns = [path, rows, [groups_path], [self._removed.tolist()], [self._sizes.tolist()]]
        return pa.table(columns, schema=REPORT)


def _hex(uid_N2: NDArray[np.uint64]) -> Sequence[str]:
    text = join_uids(np.ascontiguousarray(uid_N2[:, 0]), np.ascontiguousarray(uid_N2[:, 1])).hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]
