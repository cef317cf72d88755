"""Groups of rows by a field of the metadata, and the best rows of each: what `filter` does with `per`.

The groups are found by a distributed count of distinct values and written to `groups.parquet`, a row a group: `group`
(the value as JSON text), `rows` that entered, `quota` of them that are kept, and the words of the last one kept.

Legend: N rows, G groups.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.errors import InputError
from operators.selection import Cutoffs, Keys
from pipeline.artifact import parquet_bytes, publish_beside, read_columns
from pipeline.run import Plan
from pipeline.selection import plan_cutoffs
from pipeline.spread import spread
from pipeline.steps.values import Ranking
from pipeline.storage import Store
from pipeline.units import Unit, read_unit

MAX_GROUPS = 1_000_000
"""The driver holds some 200 bytes for each."""

_LONGEST = 64
_COUNTS = pa.schema([("group", pa.string()), ("rows", pa.int64()), ("valued", pa.int64())])
_WORDS = ("last_value", "last_high", "last_low")


def group_names(field: str, table: pa.Table) -> pa.Array:
    """The group of each row: its field's value as JSON text, `null` where it has none.

    Args:
        field: of the metadata.
        table: has the column `group`, the metadata. A text of more than `_LONGEST` characters is named by its hash.
    """
    return pa.array((_name(field, metadata) for metadata in table["group"].to_pylist()), pa.string())


def best_of_each(
    plan: Plan, field: str, ranking: Ranking, quotas: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> str:
    """Finds the groups and the cut-off of each.

    Args:
        plan: of the step; reads the metadata as `group`.
        field: of the metadata.
        ranking: orders the rows within a group.
        quotas: from the rows of each group to how many of them to keep; a group keeps all that have a value at most.

    Returns:
        the path of `groups.parquet`.

    Raises:
        InputError: there are more than `MAX_GROUPS` groups.
    """
    run = plan.run
    count = partial(_count_units, run.store, plan.name, field, ranking)
    found = _merge(plan.name, field, spread(count, plan.groups(4 * run.workers), workers=run.workers))
    quotas_G = np.minimum(quotas(found["rows"].to_numpy()), found["valued"].to_numpy())
    cutoffs = plan_cutoffs(plan, partial(_keys, field, ranking, found["group"].combine_chunks()), quotas_G)
    words = {name: cutoffs.last_G3[:, word] for word, name in enumerate(_WORDS)}
    table = pa.table({"group": found["group"], "rows": found["rows"], "quota": quotas_G, **words})
    path = f"{plan.folder}/groups.parquet"
    publish_beside(run.store, path, parquet_bytes(table))
    return path


@functools.lru_cache(maxsize=2)
def read_cutoffs(store: Store, path: str) -> tuple[pa.Array, Cutoffs]:
    """The names of the groups, and the rule that `best_of_each` found."""
    table = read_columns(store, path)
    last_G3 = np.stack([table[name].to_numpy() for name in _WORDS], axis=1)
    return table["group"].combine_chunks(), Cutoffs(table["quota"].to_numpy() > 0, last_G3)


def group_ids(names_N: pa.Array, names_G: pa.Array) -> NDArray[np.int32]:
    """The position of each row's group among all."""
    ids_N: NDArray[np.int32] = pc.index_in(names_N, value_set=names_G).to_numpy(zero_copy_only=False)
    return ids_N.astype(np.int32)


def _keys(field: str, ranking: Ranking, names_G: pa.Array, table: pa.Table) -> Keys:
    """The keys of the rows that have a value, each in its group."""
    has_N = ~np.isnan(ranking.values(table))
    ids_N = group_ids(group_names(field, table), names_G)
    return ranking.keys(table)._replace(group_N=ids_N[has_N])


def _count_units(store: Store, title: str, field: str, ranking: Ranking, units: Sequence[Unit]) -> pa.Table:
    return _merge(title, field, (_count(field, ranking, read_unit(store, unit)[0]) for unit in units))


def _count(field: str, ranking: Ranking, table: pa.Table) -> pa.Table:
    """The rows of each group, and how many of them have a value."""
    valued_N = (~np.isnan(ranking.values(table))).astype(np.int64)
    ones_N = np.ones(table.num_rows, np.int64)
    return _sum(pa.table([group_names(field, table), ones_N, valued_N], schema=_COUNTS))


def _merge(title: str, field: str, tables: Iterable[pa.Table]) -> pa.Table:
    """Adds up counts, a bounded number of them in memory at a time."""
    waiting = [_COUNTS.empty_table()]
    for table in tables:
        waiting.append(table)
        if sum(piece.num_rows for piece in waiting) > 2 * MAX_GROUPS:
            waiting = [_checked(title, field, _sum(pa.concat_tables(waiting)))]
    return _checked(title, field, _sum(pa.concat_tables(waiting)))


def _sum(counts: pa.Table) -> pa.Table:
    summed = counts.group_by("group", use_threads=False).aggregate([("rows", "sum"), ("valued", "sum")])
    return summed.rename_columns(_COUNTS.names).sort_by("group")


def _checked(title: str, field: str, groups: pa.Table) -> pa.Table:
    if groups.num_rows > MAX_GROUPS:
        rule = f"{title}.per must name a field of at most {MAX_GROUPS} different values"
        raise InputError(f"{rule}, got {field!r} with {groups.num_rows} or more")
    return groups


def _name(field: str, metadata: str | None) -> str:
    value = None if metadata is None else json.loads(metadata).get(field)
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    if len(text) <= _LONGEST and text.isprintable():
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
