"""Which rows repeat a key that another row of the pool has first: a shuffle by key.

Where the verdicts about some shards stand, the rows that were kept of them come first, those that were dropped take no
part, and nobody asks about either.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.uids import split_uids
from pipeline.columns import fixed_rows, uid_rows
from pipeline.findings import RECEIPT, Findings, bring_home, write_found
from pipeline.run import Plan
from pipeline.shuffle import PARTITION, num_partitions, shuffle
from pipeline.storage import Store
from pipeline.units import Unit, read_standing, read_unit

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


def find_repeats(plan: Plan, key: str, order: Sequence[str]) -> Findings:
    """Finds every new row whose key occurs earlier in the pool, each with the first row of its key.

    Args:
        plan: reads at least `uid`, `row` and the key column.
        key: a 16-byte column; rows where it is null repeat nothing.
        order: what makes a row come first among those of its key, after rows that stand: `("unit", "row")` or
            `("high", "low")`, the uid.
    """
    run, units = plan.run, plan.units
    repeats = Findings(run.store, f"{plan.folder}/repeats", tuple(unit.shard for unit in units), _REPEAT_SCHEMA)
    if not plan.new.units:
        return repeats
    found = f"{plan.folder}/found"
    partitions = num_partitions(sum(unit.rows for unit in units))
    by_key = shuffle(
        list(enumerate(units)),
        partial(_keys, run.store, key, partitions),
        partial(_write_repeats, run.store, found, ("new", *order)),
        partitions=partitions,
        workers=run.workers,
    )
    bring_home(repeats, pa.concat_tables([RECEIPT.empty_table(), *by_key]), run.workers)
    run.store.remove(found)
    return repeats


def _keys(store: Store, key: str, partitions: int, item: tuple[int, Unit]) -> pa.Table:
    index, unit = item
    if unit.stands is None:
        table, _ = read_unit(store, unit)
    else:
        table, kept_N = read_standing(store, unit)
        table = table.filter(pa.array(kept_N))
    table = table.filter(table[key].is_valid())
    key_high_N, key_low_N = split_uids(fixed_rows(table[key], "V16")[:, 0])
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    return pa.table(
        {
            PARTITION: (key_high_N % np.uint64(partitions)).astype(np.int32),
            "key_high": key_high_N,
            "key_low": key_low_N,
            "new": np.full(len(high_N), unit.stands is None),
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


def _write_repeats(store: Store, folder: str, order: Sequence[str], block: pa.Table) -> pa.Table:
    """Writes what a block's keys repeat; gives a receipt where there is anything."""
    rows = find_in_block(order, block)
    path = f"{folder}/{pc.min(block[PARTITION]).as_py() or 0:06d}.parquet"
    return write_found(store, path, rows)
