"""`filter`: keeps exactly n samples by a value, or all on one side of a threshold.

Reads a score step, a column of `samples`, or a field of the metadata. Verdict reasons: `below_cutoff` (not among the n
best), `out_of_range` (`min`, `max`), `no_value`. Details: `value`, and `threshold`, that of the last row kept.
Of equal values the lowest uid is kept, so exactly n stay (DataComp's own code keeps n + 1 and ties).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.errors import InputError
from operators.selection import Cutoffs, Keys, cutoff_value, is_kept, order_key
from operators.uids import split_uids
from pipeline.artifact import Artifact
from pipeline.columns import uid_rows
from pipeline.failures import winnow_error
from pipeline.run import Plan, Run, Verdicts
from pipeline.selection import exact_cutoffs, rows_to_keep
from pipeline.steps.base import Step
from pipeline.steps.values import SAMPLE_COLUMNS, numbers, read_values


class Filter(Step):
    """Settings of the step: one source of values, and either a number to keep or a range.

    Attributes:
        score: name of a score step.
        column: `width`, `height`, `bytes`, or a field of the metadata.
        keep_fraction: share of the entering rows to keep.
        keep: number of rows to keep.
        best: which end of the values is kept.
        min, max: the range kept, both ends included.
    """

    step: Literal["filter"]
    score: str | None = None
    column: str | None = None
    keep_fraction: float | None = Field(default=None, gt=0, le=1)
    keep: int | None = Field(default=None, ge=0)
    best: Literal["highest", "lowest"] = "highest"
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check(self) -> "Filter":
        if (self.score is None) == (self.column is None):
            raise ValueError("needs exactly one of score and column")
        ranked = [value for value in (self.keep_fraction, self.keep) if value is not None]
        ranged = self.min is not None or self.max is not None
        if len(ranked) + ranged != 1:
            raise ValueError("needs exactly one of keep_fraction, keep and a range (min, max or both)")
        return self

    def scores(self) -> Sequence[str]:
        """The score step, if it names one."""
        return () if self.score is None else (self.score,)

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        reads = read_values(run, self.score, self.column)
        ranked = self.keep_fraction is not None or self.keep is not None
        plan = run.plan(self.title, self.identity(run), reads, reduces=ranked)
        published = plan.published
        if not ranked:
            return self._with_values(published or plan.map_verdicts(partial(judge_range, self)))
        if published:
            return self._with_values(published)
        cutoffs = self._cutoffs(run, plan)
        threshold = float(cutoff_value(cutoffs, self.best == "highest")[0])
        info = {"threshold": _json_number(threshold)}
        return self._with_values(plan.map_verdicts(partial(judge_rank, self, cutoffs), info=info))

    def _cutoffs(self, run: Run, plan: Plan) -> Cutoffs:
        keep = rows_to_keep(self.title, run.num_entering, self.keep_fraction, self.keep)
        groups = plan.groups(run.workers)
        loaders = plan.loaders(groups, partial(_keys, self))
        try:
            return exact_cutoffs(loaders, np.array([keep], dtype=np.int64), len(groups))
        except InputError as error:
            if winnow_error(error) is not error:  # a worker's own
                raise
            rule = f"{self.title} must keep at most the rows with {self._value}"
            raise InputError(f"{rule}, got {keep}, which is more than there are") from error

    def _with_values(self, artifact: Artifact) -> Artifact:
        """Refuses verdicts that come of a misspelt column: InputError where rows entered and none has a value."""
        entered = artifact.total("in")
        if 0 < entered == artifact.totals("dropped").get("no_value"):
            raise InputError(f"{self.title} must find {self._value} in some row, got none in {entered} rows")
        return artifact

    @property
    def _value(self) -> str:
        if self.score is not None or self.column in SAMPLE_COLUMNS:
            return f"a value of {self.score or self.column!r}"
        return f"a number in the metadata field {self.column!r}"


def judge_range(settings: Filter, table: pa.Table) -> Verdicts:
    """Keeps the rows whose value lies in the range."""
    values_N = numbers(settings.column, table)
    low = -np.inf if settings.min is None else settings.min
    high = np.inf if settings.max is None else settings.max
    kept_N = (values_N >= low) & (values_N <= high)
    return _verdicts(values_N, kept_N, "out_of_range", {"min": settings.min, "max": settings.max})


def judge_rank(settings: Filter, cutoffs: Cutoffs, table: pa.Table) -> Verdicts:
    """Keeps the rows that are among the n best of the whole pool."""
    values_N = numbers(settings.column, table)
    has_N = ~np.isnan(values_N)
    kept_N = np.zeros(len(values_N), dtype=bool)
    kept_N[has_N] = is_kept(cutoffs, *_keys(settings, table))
    threshold = float(cutoff_value(cutoffs, settings.best == "highest")[0])
    return _verdicts(values_N, kept_N, "below_cutoff", {"threshold": _json_number(threshold)})


def _verdicts(
    values_N: NDArray[np.float64], kept_N: NDArray[np.bool_], reason: str, constants: dict[str, float | None]
) -> Verdicts:
    missing_N = np.isnan(values_N)
    why = np.where(missing_N, "no_value", reason).astype(object)
    columns = {"value": pa.array(values_N, mask=missing_N)}
    columns |= {name: pa.array([value] * len(kept_N), pa.float64()) for name, value in constants.items()}
    details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return Verdicts(kept_N, pa.array(why, pa.string(), mask=kept_N), details)


def _keys(settings: Filter, table: pa.Table) -> Keys:
    """The keys of the rows that have a value."""
    values_N = numbers(settings.column, table)
    has_N = ~np.isnan(values_N)
    high_N, low_N = split_uids(uid_rows(table["uid"])[has_N])
    key_N = order_key(values_N[has_N], settings.best == "highest")
    return Keys(np.zeros(len(key_N), np.int32), key_N, high_N, low_N)


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else value
