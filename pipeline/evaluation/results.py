"""Results: one for each task and model, what a job writes of them, and the tables that it ends with.

eval_results.jsonl    a line each in DataComp's form (`key`, `dataset`, `metrics` with `main_metric`) with more beside
it: `model`, `task`, `metric` (the name of the main one), `interval`, `num_samples`, ...
summary.json          the same, with DataComp's means, each with the tasks that it lacks
outcomes/             `<hash>.json` and `<hash>.parquet` for each: see `pipeline.evaluation.jobs`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from operators.errors import WorkspaceError
from operators.evaluation.datacomp import BY_KEY, Aggregate, aggregate
from operators.evaluation.intervals import Estimate, Metric, paired_bootstrap
from operators.evaluation.outcomes import Outcomes
from operators.hashing import generator
from pipeline.artifact import read_columns
from pipeline.console import print_table
from pipeline.evaluation.jobs import read_outcomes
from pipeline.storage import Store, to_json
from pipeline.summary import SUMMARY

RESULTS = "eval_results.jsonl"

_NOT_A_RESULT = ("seconds", "reused")


@dataclass(frozen=True)
class Result:
    """How a model did on a task.

    Attributes:
        key: the task's name.
        dataset: DataComp's name of it, else the same.
        task: classification, retrieval or linear_probe.
        model: its name in the config.
        metric: the main one.
        metrics: all of them, in [0, 1].
        interval: the 95 % bootstrap interval of the main one; None without draws.
        num_samples: images that count in the metrics.
        num_classes: None of a retrieval.
        not_embedded: of those images, how many the model gave no embedding; they count as wrong.
        rejected: reason -> images of the set that do not count.
        damaged: shard -> why not all of it was read.
        facts: more numbers: the `l2` of a linear probe.
        outcomes: the table of what came of every sample, in the workspace.
        train: of a linear probe's training set, `samples`, `rejected` and `damaged` as here; None of other tasks.
        seconds: wall time from the start of its task to its end, in the run that made it.
        reused: whether it was there before this run.
    """

    key: str
    dataset: str
    task: str
    model: str
    metric: str
    metrics: Mapping[str, float]
    interval: tuple[float, float] | None
    num_samples: int
    num_classes: int | None
    not_embedded: int
    rejected: Mapping[str, int]
    damaged: Mapping[str, str]
    facts: Mapping[str, float]
    outcomes: str
    train: Mapping[str, Any] | None = None
    seconds: float = field(default=0.0, compare=False)
    reused: bool = field(default=False, compare=False)

    @property
    def value(self) -> float:
        """The main metric."""
        return self.metrics[self.metric]

    @property
    def chance(self) -> float | None:
        """What the main metric is of someone who guesses, all classes alike; None where nobody knows."""
        guesses = {"acc1": 1, "mean_per_class_recall": 1, "acc5": 5}.get(self.metric)
        return min(1.0, guesses / self.num_classes) if guesses and self.num_classes else None


def load_outcomes(store: Store, result: Result) -> Outcomes:
    """What came of every sample."""
    return read_outcomes(read_columns(store, result.outcomes), result.num_classes)


def draws(seed: int, key: str) -> Any:
    """The generator of a task's bootstrap draws, the same for every model."""
    return generator(seed, "bootstrap", key)


def compare_results(store: Store, ours: Result, theirs: Result, *, seed: int = 0, resamples: int = 1000) -> Estimate:
    """The difference `ours - theirs` of two models' main metric on one task, paired over samples, with its interval.

    Args:
        store: the workspace of both.
        ours: a result.
        theirs: another model's, of the same task.
        seed: of the draws.
        resamples: how many.
    """
    assert (ours.key, ours.metric) == (theirs.key, theirs.metric), (ours.key, theirs.key)
    mine, other = load_outcomes(store, ours), load_outcomes(store, theirs)
    assert mine.num_units == other.num_units, (mine.num_units, other.num_units)
    metrics: tuple[Metric, Metric] = partial(mine.measure, ours.metric), partial(other.measure, theirs.metric)
    return paired_bootstrap(*metrics, mine.num_units, draws(seed, ours.key), resamples=resamples)


def aggregates(results: Sequence[Result]) -> dict[str, list[Aggregate]]:
    """DataComp's means for each model: of those of its 38 tasks that were measured as DataComp does."""
    values: dict[str, dict[str, float]] = {result.model: {} for result in results}
    for result in results:
        facts = BY_KEY.get(result.key)
        if facts and result.task != "linear_probe" and result.metric == facts.metric:
            values[result.model][result.dataset] = result.value
    return {model: aggregate(found) for model, found in values.items()}


def check_workspace(store: Store) -> None:
    """Raises WorkspaceError where a workspace is another kind of job's, whose summary would be lost."""
    if store.exists(SUMMARY) and not store.read_json(SUMMARY).keys() >= _OF_A_SUMMARY:
        rule = "must be of evaluations only, so that no other job's summary.json is replaced"
        raise WorkspaceError(f"workspace {rule}, got that of another kind of job: {store.url}")


_OF_A_SUMMARY = {"results", "aggregates", "steps"}


def write_results(store: Store, results: Sequence[Result]) -> None:
    """Replaces both files, unless they say the same already."""
    lines = b"".join(_line(result) for result in results)
    if _content(store, RESULTS) != lines:
        store.replace(RESULTS, lines)
    summary = {
        "workspace": store.url,
        "results": [asdict(result) for result in results],
        "aggregates": {model: [asdict(mean) for mean in means] for model, means in aggregates(results).items()},
        "steps": [_step(result) for result in results],
    }
    written = _content(store, SUMMARY)
    if written is None or _facts(json.loads(written)) != _facts(json.loads(to_json(summary))):
        store.replace(SUMMARY, to_json(summary))


def print_results(results: Sequence[Result], workspace: str) -> None:
    """Prints a line for each task and model, and the means."""
    rows = [
        (
            result.dataset,
            result.model,
            result.metric,
            result.value,
            f"{result.interval[0]:.4f} to {result.interval[1]:.4f}" if result.interval else "-",
            result.num_samples,
            sum(result.rejected.values()),
            "reused" if result.reused else f"{result.seconds:.1f} s",
        )
        for result in results
    ]
    print_table(("task", "model", "metric", "value", "95 % interval", "samples", "rejected", "time"), rows)
    for line in _remarks(results):
        print(line)
    if means := [(mean, model) for model, found in aggregates(results).items() for mean in found]:
        print()
        counts = [f"{len(mean.present)} of {len(mean.present) + len(mean.absent)}" for mean, _ in means]
        cells = [(mean.name, model, mean.value, count) for (mean, model), count in zip(means, counts, strict=True)]
        print_table(("DataComp's mean", "model", "value", "tasks"), cells)
        for name, absent in {mean.name: mean.absent for mean, _ in means if mean.absent}.items():
            print(f"{name} lacks {', '.join(absent)}")
    if all(result.reused for result in results):
        print("nothing to do: every result reused")
    print(f"workspace: {workspace} ({RESULTS}, {SUMMARY}, outcomes/)")


def _remarks(results: Sequence[Result]) -> list[str]:
    """What was not as it should be, once for each set."""
    remarks = []
    for result in {result.key: result for result in results}.values():
        if result.rejected:
            reasons = _reasons(result.rejected)
            remarks.append(f"{result.dataset}: {result.num_samples:,} images evaluated; rejected: {reasons}")
        remarks += [f"{result.dataset}: damaged shard {shard} ({why})" for shard, why in result.damaged.items()]
        if result.train is not None:
            rejected = f"; rejected: {_reasons(result.train['rejected'])}" if result.train["rejected"] else ""
            remarks.append(f"{result.dataset}: trained on {result.train['samples']:,} images{rejected}")
            damaged = result.train["damaged"].items()
            remarks += [f"{result.dataset}: damaged shard {shard} of train ({why})" for shard, why in damaged]
    return remarks + [
        f"{result.dataset}: {result.model} could not embed {result.not_embedded:,} images, which count as wrong"
        for result in results
        if result.not_embedded
    ]


def _reasons(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())


def _line(result: Result) -> bytes:
    record = asdict(replace(result, metrics={**result.metrics, "main_metric": result.value}))
    for name in _NOT_A_RESULT:
        del record[name]
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _step(result: Result) -> dict[str, Any]:
    return {
        "name": f"{result.key}/{result.model}",
        "rows_in": result.num_samples + sum(result.rejected.values()),
        "rows_out": result.num_samples,
        "seconds": result.seconds,
        "reused": result.reused,
    }


def _content(store: Store, name: str) -> bytes | None:
    return store.read(name) if store.exists(name) else None


def _facts(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what differs between a run and its repetition."""
    for record in (*summary["results"], *summary["steps"]):
        for name in _NOT_A_RESULT:
            record.pop(name, None)
    return summary
