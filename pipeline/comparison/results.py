"""What a comparison found: `comparison.json`, and the table that the job ends with."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pipeline.console import print_table
from pipeline.storage import Store, to_json

RESULTS = "comparison.json"

Interval = tuple[float, float] | None
"""Its ends; None where a single seed leaves it open."""

FEW_SEEDS = 2
"""So many seeds or fewer leave an interval over seeds open, or hardly tell anything by it (t at 1 degree is 12.7)."""

_WHY_SAMPLES = " (bootstrap), as what other seeds would give takes at least three to tell"


@dataclass(frozen=True)
class Accuracy:
    """How the models of a selection did on a task.

    Attributes:
        selection: its name.
        values: the main metric by seed, in the order of the config.
        mean: of the values.
        interval: 95 %, over seeds, within what a metric can be.
        over_samples: 95 %, over test samples, of the mean over seeds; None where it was not asked for.
    """

    selection: str
    values: tuple[float, ...]
    mean: float
    interval: Interval
    over_samples: Interval = None

    @property
    def shown(self) -> Interval:
        """The interval that tells something: over seeds, or over samples where there are too few seeds."""
        return self.over_samples if len(self.values) <= FEW_SEEDS else self.interval


@dataclass(frozen=True)
class Difference:
    """Of two selections on a task: `ours - theirs`.

    Attributes:
        ours, theirs: their names.
        value: mean over seeds.
        over_seeds, over_samples: 95 % intervals, both paired.
    """

    ours: str
    theirs: str
    value: float
    over_seeds: Interval
    over_samples: Interval

    @property
    def clear(self) -> bool:
        """Whether both intervals leave zero out, on the same side."""
        ends = [end for interval in (self.over_seeds, self.over_samples) for end in interval or (-math.inf, math.inf)]
        return min(ends) > 0 or max(ends) < 0


@dataclass(frozen=True)
class TaskVerdict:
    """What a task says.

    Attributes:
        task: its name.
        metric: the main one.
        num_samples: that it was measured on.
        accuracies: of each selection.
        differences: of each selection to the baseline, and to the random one of its size.
    """

    task: str
    metric: str
    num_samples: int
    accuracies: tuple[Accuracy, ...]
    differences: tuple[Difference, ...]

    def of(self, selection: str) -> Accuracy:
        """The accuracy of a selection."""
        return next(accuracy for accuracy in self.accuracies if accuracy.selection == selection)

    def difference(self, ours: str, theirs: str) -> Difference | None:
        """That of two selections, where it was asked for."""
        pair = (ours, theirs)
        return next((found for found in self.differences if (found.ours, found.theirs) == pair), None)


class MeanScore(NamedTuple):
    """The mean of a score over the samples that have it, and over those of them that a selection keeps."""

    pool: float
    kept: float


@dataclass(frozen=True)
class SelectionFacts:
    """A selection, without its runs: see `pipeline.comparison.selections.Selected`."""

    name: str
    kinds: tuple[str, ...]
    like: str | None
    samples: int
    scores: Mapping[str, MeanScore]
    seconds: Mapping[str, float]
    diversity: Mapping[str, Any] | None


@dataclass(frozen=True)
class Trained:
    """A model that was trained for the comparison.

    Attributes:
        selection, seed: what on and how.
        model: its folder, as open_clip loads it.
        samples: in its training set.
        samples_seen: how many it was shown, repetitions counted.
        loss: of the last step.
        seconds: of training.
    """

    selection: str
    seed: int
    model: str
    samples: int
    samples_seen: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class ComparisonResult:
    """All that a comparison found.

    Attributes:
        workspace: where.
        baseline: what the selections are compared with.
        seeds: of the trainings.
        samples_seen: by each model in its training.
        selections: in order.
        tasks: what each says.
        mean: what their mean says, where there are several; no interval over samples, and so never `clear`.
        trained: the models.
        warnings: sentences.
        reused: whether everything was there before this run.
        pool: where the pool lay.
    """

    workspace: str
    baseline: str
    seeds: tuple[int, ...]
    samples_seen: int
    selections: tuple[SelectionFacts, ...]
    tasks: tuple[TaskVerdict, ...]
    trained: tuple[Trained, ...]
    warnings: tuple[str, ...]
    mean: TaskVerdict | None = None
    reused: bool = False
    pool: tuple[str, ...] = ()

    @property
    def over(self) -> str:
        """What the intervals that are shown are over."""
        return "test samples" if len(self.seeds) <= FEW_SEEDS else "seeds"


def write_comparison(store: Store, result: ComparisonResult) -> bytes:
    """Writes `comparison.json`, unless it says the same already; returns its content."""
    record = asdict(result)
    del record["reused"]
    data = to_json(record)
    if not (store.exists(RESULTS) and store.read(RESULTS) == data):
        store.replace(RESULTS, data)
    return data


def read_comparison(store: Store) -> ComparisonResult | None:
    """The comparison that a workspace holds, if any."""
    try:
        record = json.loads(store.read(RESULTS))
    except FileNotFoundError:
        return None
    record["seeds"] = tuple(record["seeds"])
    record["warnings"] = tuple(record["warnings"])
    record["pool"] = tuple(record.get("pool", ()))
    record["selections"] = tuple(_selection(found) for found in record["selections"])
    record["tasks"] = tuple(_task(found) for found in record["tasks"])
    record["mean"] = _task(record["mean"]) if record.get("mean") else None
    record["trained"] = tuple(Trained(**found) for found in record["trained"])
    return ComparisonResult(**record)


def print_comparison(result: ComparisonResult) -> None:
    """Prints a line for each task and selection."""
    samples = {selection.name: selection.samples for selection in result.selections}
    randoms = [selection.name for selection in result.selections if selection.like]
    rows = []
    for task in (*result.tasks, *([result.mean] if result.mean else [])):
        for accuracy in task.accuracies:
            to_random = [task.difference(accuracy.selection, name) for name in randoms]
            rows.append(
                (
                    task.task,
                    accuracy.selection,
                    samples[accuracy.selection],
                    accuracy.mean,
                    interval_text(accuracy.shown),
                    difference_text(task.difference(accuracy.selection, result.baseline), result.over),
                    difference_text(next((found for found in to_random if found), None), result.over),
                )
            )
    metrics = {task.metric for task in result.tasks}
    metric = metrics.pop() if len(metrics) == 1 else "main metric"
    columns = ["task", "selection", "samples", metric, "95 % interval", f"less {result.baseline}", "less random"]
    shown = range(len(columns) if randoms else len(columns) - 1)
    print_table([columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
    seeds = f"{len(result.seeds)} seed{'s' if len(result.seeds) > 1 else ''}"
    print(
        f"\n{seeds}, each model saw {result.samples_seen:,} samples; intervals are over {result.over}"
        f"{_WHY_SAMPLES if len(result.seeds) <= FEW_SEEDS else ''}; those of differences are paired"
    )
    for warning in result.warnings:
        print(f"warning: {warning}")
    if result.reused:
        print("nothing to do: every model and every result reused")


def interval_text(interval: Interval) -> str:
    """`0.3121 to 0.3440`."""
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "open"


def difference_text(difference: Difference | None, over: str) -> str:
    """`+0.0512 (+0.0401 to +0.0623)`, the interval over `seeds` or `test samples`."""
    if difference is None:
        return "-"
    interval = difference.over_seeds if over == "seeds" else difference.over_samples
    ends = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "open"
    return f"{difference.value:+.4f} ({ends})"


def _selection(record: dict[str, Any]) -> SelectionFacts:
    scores = {title: MeanScore(*means) for title, means in record["scores"].items()}
    seconds = record.get("seconds", {})  # which older ones do not say
    return SelectionFacts(**record | {"kinds": tuple(record["kinds"]), "scores": scores, "seconds": seconds})


def _task(record: dict[str, Any]) -> TaskVerdict:
    accuracies = (
        Accuracy(
            **found
            | {name: _interval(found.get(name)) for name in ("interval", "over_samples")}
            | {"values": tuple(found["values"])}
        )
        for found in record["accuracies"]
    )
    differences = (
        Difference(**found | {name: _interval(found[name]) for name in ("over_seeds", "over_samples")})
        for found in record["differences"]
    )
    return TaskVerdict(**record | {"accuracies": tuple(accuracies), "differences": tuple(differences)})


def _interval(ends: Sequence[float] | None) -> Interval:
    return (ends[0], ends[1]) if ends else None
