"""The rows of a deduplication: from the shards into bins of blocks, and what was found out about them.

Columns of a bin: `partition`, `block`; `value`, `high`, `low`: the key that orders rows; `unit`, `row`: where they come
from; `embedding`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.duplicates import GOES, STAYS, Block, Rule
from operators.uids import join_uids, split_uids
from pipeline.artifact import parquet_bytes
from pipeline.columns import embeddings, fixed_binary, uid_rows
from pipeline.duplicates.layout import Layout
from pipeline.findings import write_found
from pipeline.run import Unit, read_unit
from pipeline.shuffle import PARTITION
from pipeline.storage import Store

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
    [("path", pa.string()), ("rows", pa.int64()), ("removed", pa.list_(pa.int64())), ("sizes", pa.list_(pa.int64()))]
)
"""What the driver hears of a bin: its findings, rows that go at each epsilon, groups by log2 of their size."""

SIZES = 40


@dataclass(frozen=True)
class Job:
    """What all tasks of one deduplication share.

    Attributes:
        store: the workspace.
        folder: of the step's artifact.
        layout: the blocks.
        rule: how they are decided.
        clusters: path of the centroids.
        epsilon: the largest compared.
        priority: gives the uint64 of each row of a table by which rows are ordered; lowest first.
    """

    store: Store
    folder: str
    layout: Layout
    rule: Rule
    clusters: str
    epsilon: float
    priority: Callable[[pa.Table], NDArray[np.uint64]]


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


def produce(job: Job, item: tuple[int, Unit]) -> pa.Table:
    """The rows of one shard that have an embedding, each with its bin."""
    index, unit = item
    table, _ = read_unit(job.store, unit)
    table = table.filter(pc.and_(table["embedding"].is_valid(), table["cluster"].is_valid()))
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    x_ND, cluster_N = embeddings(table["embedding"]), table["cluster"].to_numpy().astype(np.int64)
    block_N = job.layout.blocks_of(job.store, cluster_N, x_ND, (high_N, low_N))
    return pa.table(
        {
            PARTITION: pa.array(job.layout.bin_L[block_N], pa.int32()),
            "block": pa.array(block_N, pa.int64()),
            "value": job.priority(table),
            "high": high_N,
            "low": low_N,
            "unit": np.full(len(high_N), index, dtype=np.int32),
            "row": table["row"],
            "embedding": fixed_binary(x_ND),
        }
    )


def split_blocks(table: pa.Table) -> Iterator[tuple[int, Members]]:
    """Each block of a table with its members, blocks ascending."""
    block_N = table["block"].to_numpy()
    key_N3 = np.stack([table[name].to_numpy() for name in ("value", "high", "low")], axis=1)
    unit_N, row_N = table["unit"].to_numpy(), table["row"].to_numpy()
    x_ND = embeddings(table["embedding"])
    order_N = np.lexsort((*key_N3.T[::-1], block_N))
    ends = np.flatnonzero(np.diff(block_N[order_N])) + 1
    for here in np.split(order_N, ends) if len(order_N) else []:
        yield int(block_N[here[0]]), Members(x_ND, key_N3, unit_N, row_N).take(here)


class Results:
    """What was decided about some blocks, gathered to be written."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._found: list[pa.Table] = []
        self._groups: list[pa.Table] = []
        self._removed = np.zeros(len(job.rule.threshold_E), np.int64)
        self._sizes = np.zeros(SIZES, np.int64)

    def add(self, members: Members, block: Block, group_N2: NDArray[np.uint64], size_N: NDArray[np.int64]) -> None:
        """Takes in a decided block.

        Args:
            members: its rows.
            block: what was decided of them.
            group_N2: uint64, halves of the uid of the first member of each row's group.
            size_N: int64, members of the group.
        """
        status_N = block.status_EN[self._job.rule.chosen]
        self._removed += (block.status_EN == GOES).sum(axis=1)
        goes_M = np.flatnonzero(status_N == GOES)
        first_M3 = block.first_N3[goes_M]
        columns = [members.unit_N[goes_M], members.row_N[goes_M], first_M3[:, 1], first_M3[:, 2]]
        self._found.append(pa.table([*columns, block.similarity_N[goes_M], size_N[goes_M]], schema=FOUND))
        many_M = np.flatnonzero(size_N > 1)
        uid_M2 = members.key_N3[many_M, 1:]
        columns = [_hex(group_N2[many_M]), size_N[many_M], _hex(uid_M2), status_N[many_M] == STAYS]
        self._groups.append(pa.table(columns, schema=GROUPS))
        leads_M = many_M[(uid_M2 == group_N2[many_M]).all(axis=1)]
        self._sizes += np.bincount(np.frexp(size_N[leads_M])[1] - 1, minlength=SIZES)

    def write(self, bin_: int) -> pa.Table:
        """Writes what was found and tells of it."""
        job = self._job
        groups = pa.concat_tables([GROUPS.empty_table(), *self._groups])
        if groups.num_rows:
            job.store.replace(f"{job.folder}/groups/{bin_:06d}.parquet", parquet_bytes(groups))
        found = pa.concat_tables([FOUND.empty_table(), *self._found])
        receipt = write_found(job.store, f"{job.folder}/found/{bin_:06d}.parquet", found)
        path, rows = (receipt[name].to_pylist() or [None] for name in receipt.column_names)
        return pa.table([path, rows, [self._removed.tolist()], [self._sizes.tolist()]], schema=REPORT)


def _hex(uid_N2: NDArray[np.uint64]) -> Sequence[str]:
    text = join_uids(np.ascontiguousarray(uid_N2[:, 0]), np.ascontiguousarray(uid_N2[:, 1])).hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]
