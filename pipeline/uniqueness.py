"""Which rows repeat a key that another row of the pool has first: a shuffle by key, and one of what it found by shard.

The rows found are written to a few files, grouped by shard, so that the verdicts are made shard by shard like all
others and nothing passes through the driver.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.uids import split_uids
from pipeline.artifact import parquet_bytes, read_columns
from pipeline.columns import fixed_rows, uid_rows
from pipeline.run import Plan, Unit, read_unit
from pipeline.shuffle import PARTITION, num_partitions, shuffle
from pipeline.storage import Store

_SHARDS_PER_GROUP = 64

_REPEAT_SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("row", pa.int64()),
        ("first_unit", pa.int32()),
        ("first_row", pa.int64()),
        ("first_high", pa.uint64()),
        ("first_low", pa.uint64()),
    ]
)
_RECEIPT = pa.schema([("path", pa.string()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Repeats:
    """The rows that repeat a key, readable by shard from any worker.

    Attributes:
        store: the workspace.
        folder: where the groups lie, relative to the workspace.
        shards: every shard's name, sorted; a unit is a position in it.
    """

    store: Store
    folder: str
    shards: Sequence[str]

    def of(self, shard: str) -> pa.Table:
        """The repeating rows of one shard, each with the first row of its key: `_REPEAT_SCHEMA`."""
        unit = bisect.bisect_left(self.shards, shard)
        try:
            with self.store.open(f"{self.folder}/{unit // _SHARDS_PER_GROUP:06d}.parquet") as file:
                return pq.read_table(file, filters=pc.field("unit") == unit, use_threads=False)
        except FileNotFoundError:
            return _REPEAT_SCHEMA.empty_table()


def find_repeats(plan: Plan, key: str, order: Sequence[str]) -> Repeats:
    """Finds every row whose key occurs earlier in the pool.

    Args:
        plan: reads at least `uid`, `row` and the key column.
        key: a 16-byte column; rows where it is null repeat nothing.
        order: what makes a row come first among those of its key: `("unit", "row")` or `("high", "low")`, the uid.
    """
    run, units = plan.run, plan.units
    repeats = Repeats(run.store, f"{plan.folder}/repeats", tuple(unit.shard for unit in units))
    found = f"{plan.folder}/found"
    partitions = num_partitions(sum(unit.rows for unit in units))
    by_key = shuffle(
        list(enumerate(units)),
        partial(_keys, run.store, key, partitions),
        partial(_write_found, run.store, found, tuple(order)),
        partitions=partitions,
        workers=run.workers,
    )
    files = [file for receipt in by_key for file in receipt.to_pylist()]
    partitions = num_partitions(sum(file["rows"] for file in files))
    if files:
        by_shard = shuffle(
            [file["path"] for file in files],
            partial(_groups, run.store, partitions),
            partial(_write_groups, run.store, repeats.folder),
            partitions=partitions,
            workers=run.workers,
        )
        for _ in by_shard:
            pass
    run.store.remove(found)
    return repeats


def _keys(store: Store, key: str, partitions: int, item: tuple[int, Unit]) -> pa.Table:
    index, unit = item
    table, _ = read_unit(store, unit)
    table = table.filter(table[key].is_valid())
    key_high_N, key_low_N = split_uids(fixed_rows(table[key], "V16")[:, 0])
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    return pa.table(
        {
            PARTITION: (key_high_N % np.uint64(partitions)).astype(np.int32),
            "key_high": key_high_N,
            "key_low": key_low_N,
            "unit": np.full(len(high_N), index, dtype=np.int32),
            "row": table["row"],
            "high": high_N,
            "low": low_N,
        }
    )


def find_in_block(order: Sequence[str], block: pa.Table) -> pa.Table:
    """All but the first row of every key in a block that holds each of its keys whole: `_REPEAT_SCHEMA`."""
    names = ["key_high", "key_low", *order]
    block = block.take(pc.sort_indices(block, sort_keys=[(name, "ascending") for name in names]))
    high_N, low_N = block["key_high"].to_numpy(), block["key_low"].to_numpy()
    starts_N = np.ones(block.num_rows, dtype=bool)
    starts_N[1:] = (high_N[1:] != high_N[:-1]) | (low_N[1:] != low_N[:-1])
    first_N = np.flatnonzero(starts_N)[np.cumsum(starts_N) - 1]
    first = block.take(pa.array(first_N, pa.int64()))
    columns = [block["unit"], block["row"], *(first[name] for name in ("unit", "row", "high", "low"))]
    return pa.table(columns, schema=_REPEAT_SCHEMA).filter(pa.array(~starts_N))


def _write_found(store: Store, folder: str, order: Sequence[str], block: pa.Table) -> pa.Table:
    """Writes what a block's keys repeat; gives a receipt where there is anything."""
    rows = find_in_block(order, block)
    if not rows.num_rows:
        return _RECEIPT.empty_table()
    path = f"{folder}/{pc.min(block[PARTITION]).as_py():06d}.parquet"
    store.replace(path, parquet_bytes(rows))
    return pa.table([[path], [rows.num_rows]], schema=_RECEIPT)


def _groups(store: Store, partitions: int, path: str) -> pa.Table:
    rows = read_columns(store, path)
    group_N = rows["unit"].to_numpy() // _SHARDS_PER_GROUP
    return rows.append_column("group", pa.array(group_N)).append_column(PARTITION, pa.array(group_N % partitions))


def _write_groups(store: Store, folder: str, block: pa.Table) -> pa.Table:
    """Writes each group of shards in a block that holds its groups whole."""
    for group in pc.unique(block["group"]).to_pylist():
        rows = block.filter(pc.equal(block["group"], group)).select(_REPEAT_SCHEMA.names)
        rows = rows.sort_by([("unit", "ascending"), ("row", "ascending")])
        store.replace(f"{folder}/{group:06d}.parquet", parquet_bytes(rows))
    return _RECEIPT.empty_table()


def positions_of(table: pa.Table, repeats: pa.Table) -> tuple[Any, pa.Table]:
    """Where the repeating rows stand in a shard's table.

    Returns:
        (positions in `table` (n,), the rows of `repeats` in the same order).
    """
    rows_N = table["row"].to_numpy()
    order = repeats.sort_by("row")
    return np.searchsorted(rows_N, order["row"].to_numpy()), order
