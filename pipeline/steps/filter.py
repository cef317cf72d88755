"""`filter`: keeps exactly n samples by a value, or each sample that is on the right side of a threshold.

Reads a score step, a column of `samples`, or a field of the metadata; or draws a value for each sample. Verdict
reasons: `below_cutoff` (not among the n best), `missed_threshold` (`estimate_on`, `threshold`), `out_of_range` (`min`,
`max`), `no_value`. Details: `value`, `group` with `per`, and `threshold`: the one applied, or the value of the last row
that is kept.

Among the n best, of equal values the lowest uid is kept, so exactly n stay (DataComp's own code keeps n + 1 and ties).
A threshold is applied to each sample alone, so ties stay. Night by night (`pipeline.given`), a share or a number is
turned into one: the value of the last row that is kept on the first night, applied to every row from then on.

Beside the verdicts lies `threshold.json` where the threshold was estimated (`pipeline.steps.thresholds`), and with
`per` `groups.parquet` (`pipeline.steps.groups`). What `diversity` finds stands in the manifest
(`pipeline.steps.diversity`).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from operators.errors import InputError
from operators.selection import Cutoffs, cutoff_value, is_kept, num_kept
from operators.thresholds import reaches
from pipeline.artifact import Artifact, publish_beside
from pipeline.config.problems import KeyProblem
from pipeline.failures import winnow_error
from pipeline.given import Given
from pipeline.paths import resolve
from pipeline.run import Modality, NotPublished, Plan, Read, Run
from pipeline.selection import plan_cutoffs, rows_to_keep
from pipeline.steps.base import Step, refuse_ignored, refuse_nightly
from pipeline.steps.clusters import cluster
from pipeline.steps.diversity import DIVERSITY_VERSION, DiversitySettings, measure
from pipeline.steps.groups import best_of_each, group_ids, group_names, read_cutoffs
from pipeline.steps.thresholds import Best, ThresholdFile, estimate
from pipeline.steps.values import SAMPLE_COLUMNS, Ranking, Values, draws, numbers, read_values
from pipeline.storage import Store, digest, to_json
from pipeline.units import Verdicts


class Filter(Step):
    """Settings of the step: one source of values, and a number to keep, a range, or a stored threshold.

    Attributes:
        score: name of a score step.
        column: `width`, `height`, `bytes`, or a field of the metadata.
        draw: draw the value of each sample, uniformly from [0, 1).
        keep_fraction: share of the entering rows to keep.
        keep: number of rows to keep.
        best: which end of the values is kept.
        per: a field of the metadata: the same share, or number, of the rows of each of its values, or all where they
            are fewer.
        estimate_on: estimate the threshold of `keep_fraction` on so many drawn rows, then apply it to each row alone.
        confidence: of the interval that is stated for the share then kept.
        min, max: the range kept, both ends included.
        threshold: one that was estimated before, perhaps on another pool.
        diversity: measure how diverse the kept rows are, next to those that came in. Changes no verdict.
    """

    step: Literal["filter"]
    score: str | None = None
    column: str | None = None
    draw: bool = False
    keep_fraction: float | None = Field(default=None, gt=0, le=1)
    keep: int | None = Field(default=None, ge=0)
    best: Best = "highest"
    per: str | None = Field(default=None, min_length=1)
    estimate_on: int | None = Field(default=None, ge=1)
    confidence: float = Field(default=0.99, gt=0, lt=1)
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    threshold: ThresholdFile | None = None
    diversity: DiversitySettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.score is not None) + (self.column is not None) + self.draw != 1:
            raise ValueError("needs exactly one of score, column and draw")
        ways = [self.keep_fraction, self.keep, self.threshold]
        ranged = self.min is not None or self.max is not None
        if sum(way is not None for way in ways) + ranged != 1:
            raise ValueError("needs exactly one of keep_fraction, keep, a range (min, max or both) and threshold")
        if self.per is not None and (not self._ranked or self.estimate_on is not None):
            raise ValueError("needs keep_fraction or keep, and no estimate_on, with per")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise KeyProblem(("min",), f"must be at most max ({self.max}), got {self.min}")
        if ranged:
            refuse_ignored(self, ["best"], "with a range, which has both ends")
        if self.estimate_on is None:
            refuse_ignored(self, ["confidence"], "without estimate_on")
        elif self.keep_fraction is None:
            raise ValueError("needs keep_fraction with estimate_on")
        if self.draw and (self.estimate_on is not None or self.threshold is not None):
            raise ValueError(
                "needs score or column with estimate_on and threshold: a drawn value has a known threshold"
            )
        return self

    @property
    def _ranked(self) -> bool:
        return self.keep_fraction is not None or self.keep is not None

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """What diversity is measured by."""
        return () if self.diversity is None else ((self.diversity.model, "image"),)

    def scores(self) -> Sequence[str]:
        """The score step, if it names one."""
        return () if self.score is None else (self.score,)

    def resolved(self) -> Self:
        """The same with the path of the stored threshold absolute."""
        return self.model_copy(update={"threshold": self.threshold and resolve(self.threshold, ("file",))})

    def check(self) -> None:
        """Reads the stored threshold before any work. Raises InputError where it cannot serve."""
        if self.threshold:
            if (best := self.threshold.stored.best) != self.best:
                raise InputError(f"{self.title}.best must be {best}, as in {self.threshold.file}, got {self.best}")
            if self.score is None:
                self._check_source(self.threshold, self._column)

    def check_scores(self, scored_by: Callable[[str], str | None]) -> None:
        """Looks whether the stored threshold is one of the same model's scores. Raises InputError."""
        if self.threshold and self.score is not None and (source := scored_by(self.score)) is not None:
            self._check_source(self.threshold, source)

    def content(self) -> Mapping[str, str]:
        """The value of a stored threshold."""
        return {"threshold": digest(self.threshold.stored.value)} if self.threshold else {}

    def check_nightly(self) -> None:
        """Refuses what needs more than a threshold that is fixed on the first night."""
        if self.per is not None:
            refuse_nightly(self, f"per: {self.per}", "each value of the field would need a threshold of its own")
        if self.diversity is not None:
            refuse_nightly(self, "diversity", "it is measured over all rows at once")

    def identity(self, run: Run) -> dict[str, Any]:
        """Covers the value of a stored threshold and not where it lies, and the seed where something is drawn."""
        drawn = {"seed": run.seed} if self.draw or self.estimate_on is not None else {}
        threshold = {"threshold": self.threshold.stored.value} if self.threshold else {}
        identity = super().identity(run) | threshold | drawn
        if self.diversity is None:  # as if there were no such setting
            del identity["diversity"]
        else:
            identity["diversity"] = {**identity["diversity"], "version": DIVERSITY_VERSION}
        return identity

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        self.check()
        self.check_scores(lambda _: self._scored_by(run))
        if run.given is not None and self._ranked:
            return self._with_values(self._judge_given(run, run.given))
        plan = run.plan(self.title, self.identity(run), self._reads(run), reduces=self._ranked)
        if self.diversity:
            clusters = cluster(run, f"{self.title}.diversity", self.diversity.model, self.diversity.kmeans)
            plan.facts = partial(measure, run, self.title, self.diversity, clusters)
        return self._with_values(
            plan.published or self._judge(plan, Ranking(self._values(run), self.best == "highest"))
        )

    def _judge(self, plan: Plan, ranking: Ranking) -> Artifact:
        if self.threshold:
            value = self.threshold.stored.value
            return plan.map_verdicts(partial(judge_threshold, ranking, value), info={"threshold": value})
        if not self._ranked:
            return plan.map_verdicts(partial(judge_range, self.min, self.max, ranking.values))
        if self.per is not None:
            return self._judge_groups(plan, ranking, self.per)
        if self.estimate_on is not None:
            info = self._estimate(plan, ranking, self.estimate_on)
            return plan.map_verdicts(partial(judge_threshold, ranking, info["threshold"]), info=info)
        cutoffs = self._cutoffs(plan, ranking)
        info = {"threshold": _json_number(float(cutoff_value(cutoffs, ranking.highest)[0]))}
        return plan.map_verdicts(partial(judge_rank, ranking, cutoffs), info=info)

    def _judge_given(self, run: Run, given: Given) -> Artifact:
        """By the threshold that the first night found: this one, where none is given yet."""
        ranking = Ranking(self._values(run), self.best == "highest")
        found: Mapping[str, Any] = {}
        if self.title not in given.thresholds:
            plan = run.plan(self.title, self.identity(run), self._reads(run), reduces=True)
            if run.dry:
                raise NotPublished(self.title)
            found = self._find_threshold(plan, ranking)
            given.thresholds[self.title] = found["threshold"]
        threshold = given.thresholds[self.title]
        how_found = ("keep_fraction", "keep", "estimate_on", "confidence")
        identity = {name: value for name, value in self.identity(run).items() if name not in how_found}
        plan = run.plan(self.title, identity | {"threshold": threshold}, self._reads(run))
        judge = partial(judge_threshold, ranking, threshold)
        return plan.published or plan.map_verdicts(judge, info={"threshold": threshold, **found})

    def _find_threshold(self, plan: Plan, ranking: Ranking) -> Mapping[str, Any]:
        """As `threshold` the value of the last row that would be kept, or an estimate of that; and how it was found."""
        if self.estimate_on is not None:
            return self._estimate(plan, ranking, self.estimate_on)
        value = float(cutoff_value(self._cutoffs(plan, ranking), ranking.highest)[0])
        return {"threshold": self._finite(value)}

    def _cutoffs(self, plan: Plan, ranking: Ranking) -> Cutoffs:
        keep = rows_to_keep(self.title, plan.run.num_entering, self.keep_fraction, self.keep)
        with self._explained(keep):
            return plan_cutoffs(plan, ranking.keys, np.array([keep], dtype=np.int64))

    def _judge_groups(self, plan: Plan, ranking: Ranking, field: str) -> Artifact:
        path = best_of_each(plan, field, ranking, self._quotas)
        return plan.map_verdicts(partial(judge_groups, plan.run.store, path, field, ranking), info={"groups": path})

    def _estimate(self, plan: Plan, ranking: Ranking, estimate_on: int) -> Mapping[str, Any]:
        """The threshold, how it was estimated, and where that is stored."""
        assert self.keep_fraction is not None
        run = plan.run
        size = min(estimate_on, run.num_entering)
        rank = num_kept(self.keep_fraction, size)
        if rank == 0:
            rule = f"{self.title}.keep_fraction must be at least one of the {size} rows to estimate on"
            raise InputError(f"{rule}, got {self.keep_fraction}")
        with self._explained(rank):
            found = estimate(plan, ranking, size, rank)
        self._finite(found.value)
        threshold = found.stored(
            score=self.score or str(self.column),
            scored_by=self._scored_by(run),
            best=self.best,
            keep_fraction=self.keep_fraction,
            confidence=self.confidence,
            seed=run.seed,
        )
        path = f"{plan.folder}/threshold.json"
        record = threshold.model_dump(mode="json")
        publish_beside(run.store, path, to_json(record))
        return {"threshold": threshold.value, "threshold_file": path, "estimate": record}

    def _finite(self, threshold: float) -> float:
        if not math.isfinite(threshold):
            raise InputError(f"the threshold of {self.title} must be a finite number, got {threshold}")
        return threshold

    def _quotas(self, rows_G: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows of each group to keep, by its size."""
        if self.keep is not None:
            return np.minimum(rows_G, self.keep)
        sizes, position_G = np.unique(rows_G, return_inverse=True)
        return np.array([num_kept(self.keep_fraction or 0.0, size) for size in sizes.tolist()], np.int64)[position_G]

    def _values(self, run: Run) -> Values:
        return partial(draws, run.seed, self.title) if self.draw else partial(numbers, self.column)

    def _reads(self, run: Run) -> list[Read]:
        reads = [Read(run.samples, {"uid": "uid"})] if self.draw else read_values(run, self.score, self.column)
        return [*reads, Read(run.samples, {"metadata": "group"})] if self.per is not None else reads

    def _check_source(self, threshold: ThresholdFile, scored_by: str) -> None:
        """Raises InputError where the stored threshold is one of other values."""
        made_by = threshold.stored.scored_by
        if made_by != scored_by and not threshold.any_model:
            raise InputError(
                f"{threshold.file} must be a threshold of the values that {self.title} reads (or any_model: true), "
                f"got one of {made_by}, where the values are of {scored_by}"
            )

    def _scored_by(self, run: Run) -> str:
        """What computes the values: equal where values of two runs can be compared."""
        return self._column if self.score is None else str(run.artifacts[self.score].info["scored_by"])

    @property
    def _column(self) -> str:
        return f"column {self.column}"

    @contextlib.contextmanager
    def _explained(self, keep: int) -> Iterator[None]:
        """Explains a quota above the number of values: what `exact_cutoffs` raises knows neither step nor column."""
        try:
            yield
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


def judge_range(low: float | None, high: float | None, values: Values, table: pa.Table) -> Verdicts:
    """Keeps the rows whose value lies in the range; an end that is None is open."""
    values_N = values(table)
    kept_N = (values_N >= (-np.inf if low is None else low)) & (values_N <= (np.inf if high is None else high))
    return _verdicts(values_N, kept_N, "out_of_range", {"min": low, "max": high})


def judge_threshold(ranking: Ranking, threshold: float, table: pa.Table) -> Verdicts:
    """Keeps the rows whose value is at least as good as the threshold."""
    values_N = ranking.values(table)
    kept_N = reaches(values_N, threshold, ranking.highest)
    return _verdicts(values_N, kept_N, "missed_threshold", {"threshold": threshold})


def judge_rank(ranking: Ranking, cutoffs: Cutoffs, table: pa.Table) -> Verdicts:
    """Keeps the rows that are among the n best of the whole pool."""
    values_N = ranking.values(table)
    kept_N = np.zeros(len(values_N), dtype=bool)
    kept_N[~np.isnan(values_N)] = is_kept(cutoffs, *ranking.keys(table))
    threshold = float(cutoff_value(cutoffs, ranking.highest)[0])
    return _verdicts(values_N, kept_N, "below_cutoff", {"threshold": _json_number(threshold)})


def judge_groups(store: Store, path: str, field: str, ranking: Ranking, table: pa.Table) -> Verdicts:
    """Keeps the rows that are among the best of their group."""
    groups_G, cutoffs = read_cutoffs(store, path)
    groups_N = group_names(field, table)
    ids_N = group_ids(groups_N, groups_G)
    values_N = ranking.values(table)
    has_N = ~np.isnan(values_N)
    kept_N = np.zeros(len(values_N), dtype=bool)
    kept_N[has_N] = is_kept(cutoffs, *ranking.keys(table)._replace(group_N=ids_N[has_N]))
    threshold_N = cutoff_value(cutoffs, ranking.highest)[ids_N]
    facts = {"threshold": pa.array(threshold_N, mask=np.isnan(threshold_N)), "group": groups_N}
    return _verdicts(values_N, kept_N, "below_cutoff", facts)


def _verdicts(
    values_N: NDArray[np.float64], kept_N: NDArray[np.bool_], reason: str, facts: Mapping[str, float | pa.Array | None]
) -> Verdicts:
    """Verdicts with the value and further facts as details; a fact is a column, or one number for all rows."""
    missing_N = np.isnan(values_N)
    why = np.where(missing_N, "no_value", reason).astype(object)
    columns = {"value": pa.array(values_N, mask=missing_N)}
    for name, fact in facts.items():
        columns[name] = fact if isinstance(fact, pa.Array) else pa.array([fact] * len(kept_N), pa.float64())
    details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return Verdicts(kept_N, pa.array(why, pa.string(), mask=kept_N), details)


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else value
