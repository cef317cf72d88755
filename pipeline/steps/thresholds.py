"""Thresholds that are fixed once and then applied to each row alone: estimated on a subset, or read from a file.

`threshold.json`, beside the verdicts of the step that estimated it, holds a `Threshold`.

Legend: N rows.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from operators.errors import InputError
from operators.selection import Cutoffs, Keys, cutoff_value, is_kept
from operators.thresholds import Subset, kept_share_interval, reaches
from pipeline.paths import Storage
from pipeline.remote import read_whole
from pipeline.run import Plan
from pipeline.selection import plan_cutoffs
from pipeline.spread import spread
from pipeline.steps.values import Ranking, draws
from pipeline.storage import Store
from pipeline.units import Unit, read_unit

Best = Literal["highest", "lowest"]
Interval = tuple[float, float]


class Threshold(BaseModel):
    """A threshold and where it comes from, as `threshold.json` holds it.

    Attributes:
        format: names this schema.
        score: what the value is called in the config that estimated it.
        scored_by: what computes the value: a model's identity, a function's, or the name of a column.
        best: which side of the value is kept; the value itself is.
        value: the threshold.
        keep_fraction: the share that was asked for.
        subset: rows that it was estimated on, drawn from `rows`.
        kept_share: of those `rows`, as counted.
        confidence: of the intervals, which no distribution of the values can break.
        pool_interval: within which `kept_share` had to lie, by what the subset showed.
        source_interval: within which the share kept of any later pool from the same source is expected to lie.
        seed: that the subset was drawn with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["winnow-threshold-1"] = "winnow-threshold-1"
    score: str
    scored_by: str
    best: Best
    value: FiniteFloat
    keep_fraction: float = Field(gt=0, le=1)
    subset: int = Field(ge=1)
    rows: int = Field(ge=1)
    kept_share: float = Field(ge=0, le=1)
    confidence: float = Field(gt=0, lt=1)
    pool_interval: Interval
    source_interval: Interval
    seed: int


class ThresholdFile(BaseModel):
    """Where a threshold was stored.

    Attributes:
        file: a `threshold.json`, as a path or URL.
        any_model: whether it may judge values that another model computed.
        storage: options for fsspec to open the file. Default: those of a workspace in the same kind of store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    file: str = Field(min_length=1)
    any_model: bool = False
    storage: Storage = None

    @cached_property
    def stored(self) -> Threshold:
        """The stored threshold, read once and then the same for the whole of a run. Raises as `read` does."""
        return self.read()

    def read(self) -> Threshold:
        """The stored threshold. Raises InputError where the file is none."""
        try:
            return Threshold.model_validate_json(read_whole(self.file, self.storage))
        except ValidationError as error:
            raise InputError(f"{self.file} must be a threshold.json of Winnow's, got {_first(error)}") from error
        except Exception as error:  # each store has its own family of errors
            raise InputError(f"{self.file} must be a readable file, got {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Estimate:
    """A threshold that was fixed on a subset, and what was counted with it.

    Attributes:
        value: the threshold.
        subset: what it was fixed on.
        rows: of the pool.
        kept: of them, those that reach the threshold.
    """

    value: float
    subset: Subset
    rows: int
    kept: int

    def stored(self, *, confidence: float, **facts: Any) -> Threshold:
        """What is written down; `facts` are the attributes of `Threshold` that are not known here."""
        return Threshold(
            value=self.value,
            subset=self.subset.size,
            rows=self.rows,
            kept_share=self.kept / self.rows,
            confidence=confidence,
            pool_interval=kept_share_interval(self.subset, confidence, self.rows),
            source_interval=kept_share_interval(self.subset, confidence),
            **facts,
        )


def estimate(plan: Plan, ranking: Ranking, size: int, rank: int) -> Estimate:
    """Fixes a threshold on rows that are drawn by the hash of (seed, step, uid).

    Args:
        plan: the step's.
        ranking: of the rows; those without a value rank last.
        size: rows to draw.
        rank: of the drawn row whose value is the threshold, from 1.

    Raises:
        InputError: fewer of the drawn rows have a value.
    """
    run = plan.run
    draw = Ranking(partial(draws, run.seed, f"{plan.name}.subset"), highest=False)
    drawn = _Draw(draw, plan_cutoffs(plan, draw.keys, np.array([size], dtype=np.int64)))
    last = plan_cutoffs(plan, partial(_drawn_keys, drawn, ranking), np.array([rank], dtype=np.int64))
    value = float(cutoff_value(last, ranking.highest)[0])
    count = partial(_count_reaching, run.store, drawn, ranking, value)
    reached, kept = np.sum(list(spread(count, plan.units, workers=run.workers)), axis=0).tolist()
    return Estimate(value, Subset(size, rank, reached), run.num_entering, kept)


@dataclass(frozen=True)
class _Draw:
    """Which rows a subset holds."""

    order: Ranking
    last: Cutoffs

    def of(self, table: pa.Table) -> NDArray[np.bool_]:
        return is_kept(self.last, *self.order.keys(table))


def _drawn_keys(subset: _Draw, ranking: Ranking, table: pa.Table) -> Keys:
    return ranking.keys(table.filter(pa.array(subset.of(table))))


def _count_reaching(store: Store, subset: _Draw, ranking: Ranking, value: float, unit: Unit) -> NDArray[np.int64]:
    """How many rows of a shard reach the threshold: of those that were drawn, and of all."""
    table, _ = read_unit(store, unit)
    reaches_N = reaches(ranking.values(table), value, ranking.highest)
    return np.array([np.count_nonzero(reaches_N & subset.of(table)), np.count_nonzero(reaches_N)])


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
