"""What a task does with one shard: reads the rows that still stand, has a function look at them, publishes a part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import logs
from pipeline.artifact import find_part, mask_digest, publish_part, read_columns
from pipeline.columns import booleans, scatter
from pipeline.parts import Part
from pipeline.storage import Store

Block = TypeVar("Block")


@dataclass(frozen=True)
class Verdicts:
    """What a step decided about the rows of one table.

    Attributes:
        kept_N: which rows go on.
        reasons: string array, null where kept.
        details: struct array of the numbers behind each decision, or None.
    """

    kept_N: NDArray[np.bool_]
    reasons: pa.Array
    details: pa.StructArray | None = None


Judge = Callable[[pa.Table], Verdicts]
Attribute = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True)
class Unit:
    """What one task is told about one shard: where its inputs lie, where its part goes, and the part that stands."""

    shard: str
    id: str
    rows: int
    entering: str | None
    inputs: tuple[tuple[str, Mapping[str, str]], ...]
    stands: str | None = None


def read_unit(store: Store, unit: Unit) -> tuple[pa.Table, NDArray[np.bool_]]:
    """The table a step's function sees of one shard, and which of the shard's rows it holds."""
    if unit.entering is None:
        entered_N = np.ones(unit.rows, dtype=bool)
    else:
        entered_N = booleans(read_columns(store, unit.entering, ["kept"])["kept"])
    columns: dict[str, pa.ChunkedArray] = {}
    for path, names in unit.inputs:
        table = read_columns(store, path, list(names))
        assert table.num_rows == unit.rows, f"{path} has {table.num_rows} rows, its shard {unit.rows}"
        columns |= {new: table[old] for old, new in names.items()}
    return pa.table(columns).filter(pa.array(entered_N)), entered_N


def read_standing(store: Store, unit: Unit) -> tuple[pa.Table, NDArray[np.bool_]]:
    """`read_unit` of a shard whose verdicts stand, and which of the rows in the table they keep."""
    assert unit.stands is not None
    table, entered_N = read_unit(store, unit)
    return table, booleans(read_columns(store, unit.stands, ["kept"])["kept"])[entered_N]


def load_units(store: Store, units: Sequence[Unit], load: Callable[[pa.Table], Any]) -> Any:
    """What a function makes of the tables of some units, joined."""
    return load(pa.concat_tables([read_unit(store, unit)[0] for unit in units]))


def load_blocks(store: Store, units: Sequence[Unit], load: Callable[[pa.Table], Block]) -> Iterator[Block]:
    """What a function makes of the table of each unit."""
    for unit in units:
        yield load(read_unit(store, unit)[0])


def _finished(store: Store, folder: str, unit: Unit) -> Part | None:
    part = find_part(store, f"{folder}/{unit.id}")
    return replace(part, shard=unit.shard) if part else None


def work_in_logs(workspace: str, step: str, work: Callable[[Unit], Part], unit: Unit) -> Part:
    """Works on a unit, and names it in all that is logged meanwhile."""
    with logs.bound(workspace=workspace, step=step, shard=unit.shard):
        return work(unit)


def judge_unit(store: Store, folder: str, judge: Judge, unit: Unit) -> Part:
    """Judges the rows of one shard and publishes the verdicts, or finds them published."""
    if part := _finished(store, folder, unit):
        return part
    table, entered_N = read_unit(store, unit)
    verdicts = judge(table)
    columns = {
        "kept": scatter(pa.array(verdicts.kept_N), entered_N),
        "reason": scatter(verdicts.reasons, entered_N),
    }
    if verdicts.details is not None:
        columns["detail"] = scatter(verdicts.details, entered_N)
    result = pa.table(columns)
    kept_N = booleans(result["kept"])
    counts = {"in": int(entered_N.sum()), "kept": int(kept_N.sum())}
    dropped = verdicts.reasons.drop_null().value_counts()
    counts |= {f"dropped:{item['values']}": item["counts"] for item in dropped.to_pylist()}
    assert counts["in"] == counts["kept"] + sum(n for key, n in counts.items() if key.startswith("dropped:")), counts
    draft = Part(unit.shard, unit.id, "", 0, 0, "", counts, mask_digest(kept_N))
    return publish_part(store, folder, draft, [result], result.schema)


def attribute_unit(store: Store, folder: str, attribute: Attribute, unit: Unit) -> Part:
    """Computes and publishes the new columns of one shard, or finds them published."""
    if part := _finished(store, folder, unit):
        return part
    table, entered_N = read_unit(store, unit)
    columns = attribute(table)
    result = pa.table(
        [scatter(column.combine_chunks(), entered_N) for column in columns.columns], schema=columns.schema
    )
    draft = Part(unit.shard, unit.id, "", 0, 0, "", {"in": int(entered_N.sum()), "kept": int(entered_N.sum())})
    return publish_part(store, folder, draft, [result], result.schema)
