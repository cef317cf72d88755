"""Where a step finds the number that it ranks by: a score step, a column of `samples`, or a field of the metadata.

Legend: N rows.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.hashing import keyed_hash
from operators.selection import Keys, order_key, unit_values
from operators.uids import split_uids
from pipeline.columns import uid_rows
from pipeline.run import Read, Run

SAMPLE_COLUMNS = ("width", "height", "bytes")
"""Columns of `samples` that can be ranked by."""

Values = Callable[[pa.Table], NDArray[np.float64]]
"""The number of each row of a table, NaN where it has none; picklable."""


@dataclass(frozen=True)
class Ranking:
    """What rows are ranked by: a number each, and which end of the numbers is best.

    Attributes:
        values: of a table that has a column `uid` besides what it needs itself.
        highest: whether the highest is best.
    """

    values: Values
    highest: bool

    def keys(self, table: pa.Table) -> Keys:
        """The keys of the rows that have a value, all in one group."""
        values_N = self.values(table)
        has_N = ~np.isnan(values_N)
        high_N, low_N = split_uids(uid_rows(table["uid"])[has_N])
        return Keys(np.zeros(len(high_N), np.int32), order_key(values_N[has_N], self.highest), high_N, low_N)


def read_values(run: Run, score: str | None, column: str | None) -> list[Read]:
    """The reads that give a table `uid` and `value`, the raw column to be turned into numbers by `numbers`."""
    if score is not None:
        return [Read(run.samples, {"uid": "uid"}), Read(run.artifacts[score], {"score": "value"})]
    stored = column if column in SAMPLE_COLUMNS else "metadata"
    return [Read(run.samples, {"uid": "uid", str(stored): "value"})]


def numbers(column: str | None, table: pa.Table) -> NDArray[np.float64]:
    """The values of a table's rows as float64; NaN where a row has none, or a metadata field that is no number."""
    values = table["value"]
    if column is not None and column not in SAMPLE_COLUMNS:
        values = pa.array(map(partial(_field, column), values.to_pylist()), pa.float64())
    filled = pc.fill_null(pc.cast(values, pa.float64()), np.nan)
    return cast("NDArray[np.float64]", filled.to_numpy())


def draws(seed: int, label: str, table: pa.Table) -> NDArray[np.float64]:
    """A random number in [0, 1] for each row, which belongs to (seed, label, uid)."""
    return unit_values(keyed_hash(*split_uids(uid_rows(table["uid"])), seed, label))


def _field(name: str, metadata: str | None) -> float | None:
    value = None if metadata is None else json.loads(metadata).get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers have no end
        return math.inf if value > 0 else -math.inf
