"""Which rows repeat a key that another row of the pool has first: one shuffle by key, on Ray Data.

The rows found are written to a few files, grouped by shard, so that the verdicts are made shard by shard like all others
and nothing passes through the driver.
"""

import bisect
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from operators.uids import split_uids
from pipeline.columns import fixed_rows, uid_rows
from pipeline.run import Plan, Unit, read_unit
from pipeline.storage import Store

_ROWS_PER_PARTITION = 4_000_000
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
    store, units = plan.run.store, plan.units
    repeats = Repeats(store, f"{plan.folder}/repeats", tuple(unit.shard for unit in units))
    partitions = max(1, sum(unit.rows for unit in units) // _ROWS_PER_PARTITION)
    items = [{"index": i, "unit": pickle.dumps(unit)} for i, unit in enumerate(units)]
    blocks = min(len(items), 8 * plan.run.workers)
    keys = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        partial(_keys, store, key, partitions), batch_size=1, batch_format="pyarrow"
    )
    groups = -(-len(units) // _SHARDS_PER_GROUP)
    found = (
        keys.repartition(partitions, keys=["partition"])
        .map_batches(partial(_repeats, tuple(order)), batch_size=None, batch_format="pyarrow")
        .repartition(min(groups, 4 * plan.run.workers), keys=["group"])
        .map_batches(partial(_write_groups, store, repeats.folder), batch_size=None, batch_format="pyarrow")
    )
    for _ in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass
    return repeats


def _keys(store: Store, key: str, partitions: int, batch: pa.Table) -> pa.Table:
    (item,) = batch.to_pylist()
    unit: Unit = pickle.loads(item["unit"])  # noqa: S301 (our own object, from our own driver)
    table, _ = read_unit(store, unit)
    table = table.filter(table[key].is_valid())
    key_high_N, key_low_N = split_uids(fixed_rows(table[key], "V16")[:, 0])
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    return pa.table(
        {
            "partition": (key_high_N % np.uint64(partitions)).astype(np.int32),
            "key_high": key_high_N,
            "key_low": key_low_N,
            "unit": np.full(len(high_N), item["index"], dtype=np.int32),
            "row": table["row"],
            "high": high_N,
            "low": low_N,
        }
    )


def _repeats(order: tuple[str, ...], block: pa.Table) -> pa.Table:
    """All but the first row of every key in a block that holds each of its keys whole."""
    if block.num_rows == 0:
        return _REPEAT_SCHEMA.append(pa.field("group", pa.int32())).empty_table()
    names = ["key_high", "key_low", *order]
    block = block.take(pc.sort_indices(block, sort_keys=[(name, "ascending") for name in names]))
    high_N, low_N = block["key_high"].to_numpy(), block["key_low"].to_numpy()
    starts_N = np.ones(block.num_rows, dtype=bool)
    starts_N[1:] = (high_N[1:] != high_N[:-1]) | (low_N[1:] != low_N[:-1])
    first_N = np.flatnonzero(starts_N)[np.cumsum(starts_N) - 1]
    first = block.take(pa.array(first_N))
    table = pa.table(
        {
            "unit": block["unit"],
            "row": block["row"],
            "first_unit": first["unit"],
            "first_row": first["row"],
            "first_high": first["high"],
            "first_low": first["low"],
            "group": pc.cast(pc.divide(block["unit"], _SHARDS_PER_GROUP), pa.int32()),
        }
    )
    return table.filter(pa.array(~starts_N))


def _write_groups(store: Store, folder: str, block: pa.Table) -> pa.Table:
    """Writes each group of shards in a block that holds its groups whole."""
    groups = pc.unique(block["group"]).to_pylist() if block.num_rows else []
    for group in groups:
        rows = block.filter(pc.equal(block["group"], group)).select(_REPEAT_SCHEMA.names)
        rows = rows.sort_by([("unit", "ascending"), ("row", "ascending")]).cast(_REPEAT_SCHEMA)
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        store.replace(f"{folder}/{group:06d}.parquet", sink.getvalue().to_pybytes())
    return pa.table({"groups": [len(groups)]})


def positions_of(table: pa.Table, repeats: pa.Table) -> tuple[Any, pa.Table]:
    """Where the repeating rows stand in a shard's table.

    Returns:
        (positions in `table` (n,), the rows of `repeats` in the same order).
    """
    rows_N = table["row"].to_numpy()
    order = repeats.sort_by("row")
    return np.searchsorted(rows_N, order["row"].to_numpy()), order
