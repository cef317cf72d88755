"""What was found out about some rows, brought back to the shards that they came from.

Work that compares rows of many shards writes what it found to files of any order, with the columns `unit` (position of
the shard) and `row`. A shuffle groups these rows by shard, so that verdicts are made shard by shard like all others and
nothing passes through the driver.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifact import parquet_bytes, read_columns
from pipeline.shuffle import PARTITION, num_partitions, shuffle
from pipeline.storage import Store

RECEIPT = pa.schema([("path", pa.string()), ("rows", pa.int64())])

_SHARDS_PER_GROUP = 64


@dataclass(frozen=True)
class Findings:
    """Rows of which something was found, readable by shard from any worker.

    Attributes:
        store: the workspace.
        folder: where they lie, relative to the workspace.
        shards: every shard's name, sorted; a unit is a position in it.
        schema: of the rows; has int32 `unit` and int64 `row`.
    """

    store: Store
    folder: str
    shards: Sequence[str]
    schema: pa.Schema

    def of(self, shard: str) -> pa.Table:
        """The rows of one shard, by row."""
        unit = bisect.bisect_left(self.shards, shard)
        path = f"{self.folder}/{unit // _SHARDS_PER_GROUP:06d}.parquet"
        if not self.store.exists(path):
            return self.schema.empty_table()
        rows = read_columns(self.store, path)
        return rows.filter(pc.equal(rows["unit"], unit))


def write_found(store: Store, path: str, rows: pa.Table) -> pa.Table:
    """Writes rows for `bring_home`, where there are any; gives a receipt."""
    if not rows.num_rows:
        return RECEIPT.empty_table()
    store.replace(path, parquet_bytes(rows))
    return pa.table([[path], [rows.num_rows]], schema=RECEIPT)


def bring_home(findings: Findings, receipts: pa.Table, workers: int) -> None:
    """Groups the files of `write_found` by shard.

    Args:
        findings: where to.
        receipts: of the files.
        workers: CPU workers to spread over.
    """
    partitions = num_partitions(pc.sum(receipts["rows"]).as_py() or 0)
    if receipts.num_rows:
        grouped = shuffle(
            receipts["path"].to_pylist(),
            partial(_groups, findings.store, partitions),
            partial(_write_groups, findings),
            partitions=partitions,
            workers=workers,
        )
        for _ in grouped:
            pass


def positions_of(table: pa.Table, found: pa.Table) -> tuple[Any, pa.Table]:
    """Where the rows that were found stand in their shard's table.

    Returns:
        (positions in `table` (n,), the rows of `found` in the same order).
    """
    order = found.sort_by("row")
    return np.searchsorted(table["row"].to_numpy(), order["row"].to_numpy()), order


def _groups(store: Store, partitions: int, path: str) -> pa.Table:
    rows = read_columns(store, path)
    group_N = rows["unit"].to_numpy() // _SHARDS_PER_GROUP
    return rows.append_column("group", pa.array(group_N)).append_column(PARTITION, pa.array(group_N % partitions))


def _write_groups(findings: Findings, block: pa.Table) -> pa.Table:
    """Writes each group of shards in a block that holds its groups whole."""
    for group in pc.unique(block["group"]).to_pylist():
        rows = block.filter(pc.equal(block["group"], group)).select(findings.schema.names)
        rows = rows.sort_by([("unit", "ascending"), ("row", "ascending")])
        findings.store.replace(f"{findings.folder}/{group:06d}.parquet", parquet_bytes(rows))
    return RECEIPT.empty_table()
