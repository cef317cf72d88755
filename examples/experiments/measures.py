"""How well a selection finds pairs whose captions are true, and how that and the accuracies are shown.

Only what any user has is looked at: the scores that the steps published, their verdicts, and the answers beside them.

Legend: N samples of the pool.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from operators.evaluation.ranking import roc_auc
from pipeline.artifact import read_columns
from pipeline.columns import booleans
from pipeline.comparison.page import accuracy_line
from pipeline.comparison.results import ComparisonResult, TaskVerdict, difference_text, interval_text
from pipeline.comparison.settings import Comparison, Like
from pipeline.console import print_table
from pipeline.curate import run_steps, start_run
from pipeline.listing import list_shards
from pipeline.progress import Progress
from pipeline.report.intervals import Line, draw_intervals
from pipeline.run import Run
from pipeline.storage import to_json

_STYLE = """
svg { background: #fff; font: 11px system-ui, sans-serif; }
text { fill: #5d6673; }
.grid { stroke: #e5e2da; } .axis { stroke: #5d6673; opacity: .6; } .mark { stroke: #1c2430; stroke-dasharray: 3 3; }
.kept { fill: #1d7a6c; } .dropped { fill: #c2691c; } .plain { fill: #5d6673; } text.marked { fill: #1c2430; }
.line { fill: none; stroke-width: 2; } .line.kept { stroke: #1d7a6c; } .line.dropped { stroke: #c2691c; }
.line.plain { stroke: #5d6673; stroke-width: 1.5; stroke-dasharray: 4 4; }
.span { stroke-width: 3; stroke-linecap: round; opacity: .6; } .span.wide { stroke: #1c2430; stroke-width: 1; }
.span.kept { stroke: #1d7a6c; } .span.dropped { stroke: #c2691c; } .span.plain { stroke: #5d6673; }
circle.seed { opacity: .45; }
"""
"""The colours of the report's light page, so that a drawing can stand alone."""


@dataclass(frozen=True)
class Quality:
    """How well a selection tells true captions from false ones.

    Attributes:
        auc: area under the ROC curve of its score, over the samples that have it; None where it has none.
        precision: share of true captions in what it keeps.
        kept: samples.
    """

    auc: float | None
    precision: float
    kept: int


def qualities(config: Comparison, workers: int) -> dict[str, Quality]:
    """The quality of every selection that is no draw, on a Ray that is up; what a comparison has made is reused."""
    config = config.resolved()
    names = [name for name, selection in config.selections.items() if not isinstance(selection, Like)]
    return {name: quality(*_selected(config, name, workers)) for name in names}


def quality(run: Run, score: str | None) -> Quality:
    """The quality of a finished run.

    Args:
        run: over a pool with `label` and `true_label` in the metadata.
        score: title of its score step.
    """
    answers = [json.loads(value) for value in _column(run, "samples", "metadata")]
    aligned_N = np.array([answer["label"] == answer["true_label"] for answer in answers])
    assert run.entering is not None
    kept_N = np.concatenate(
        [booleans(read_columns(run.store, part.path, ["kept"])["kept"]) for part in run.entering.parts]
    )
    auc = None
    if score is not None:
        score_N: NDArray[np.float64] = np.array(_column(run, score, "score"), dtype=np.float64)
        scored_N = ~np.isnan(score_N)
        auc = roc_auc(aligned_N[scored_N], score_N[scored_N])
    return Quality(auc, float(aligned_N[kept_N].mean()), int(kept_N.sum()))


def table(result: ComparisonResult, found: Mapping[str, Quality], task: TaskVerdict) -> list[tuple[object, ...]]:
    """A row for each selection: its quality, and what a model becomes that is trained on it."""
    randoms = [selection.name for selection in result.selections if selection.like]
    rows = []
    for selection in result.selections:
        accuracy, own = task.of(selection.name), found.get(selection.name)
        others = (result.baseline, *randoms)
        less = [difference_text(task.difference(selection.name, other), result.over) for other in others]
        measured = (own.auc, own.precision) if own else (None, None)
        rows.append((selection.name, selection.samples, *measured, accuracy.mean, interval_text(accuracy.shown), *less))
    return rows


def show(result: ComparisonResult, found: Mapping[str, Quality], task: TaskVerdict | None = None) -> None:
    """Prints the table, of the first task unless another is given."""
    randoms = [f"less {selection.name}" for selection in result.selections if selection.like]
    columns = ["selection", "kept", "ROC AUC", "true captions", "zero-shot", "95 % interval", f"less {result.baseline}"]
    print_table([*columns, *randoms], table(result, found, task or result.tasks[0]))
    print(
        f"\n{len(result.seeds)} seeds, {result.samples_seen:,} samples seen by each model; differences are paired by "
        f"seed, with 95 % intervals over {result.over}"
    )


def draw_accuracies(task: TaskVerdict, baseline: str) -> Markup:
    """Zero-shot accuracy by selection: dots are seeds, lines 95 % intervals of their means."""
    lines = [accuracy_line(task, found, baseline) for found in task.accuracies]
    return draw_intervals(f"{task.metric} on {task.task}", lines, "zero-shot accuracy")


def draw_aucs(found: Mapping[str, Quality]) -> Markup:
    """ROC AUC by selection, of those that have a score."""
    lines = [Line(name, own.auc, None, tone="kept") for name, own in found.items() if own.auc is not None]
    return draw_intervals("ROC AUC for true captions", lines, "ROC AUC for true captions")


def write_drawing(path: Path, drawing: Markup) -> None:
    """Writes a chart of the report as a file of its own."""
    opening, _, rest = str(drawing).partition(">")
    path.write_text(f'{opening} xmlns="http://www.w3.org/2000/svg" width="690"><style>{_STYLE}</style>{rest}\n')


def write_record(path: Path, record: Any) -> None:
    """Writes all numbers of an experiment."""
    path.write_bytes(to_json(record))


def _selected(config: Comparison, name: str, workers: int) -> tuple[Run, str | None]:
    curation = config.curation(name)
    run = start_run(curation, list_shards(curation.pool), workers=workers, progress=Progress())
    for _ in run_steps(run, curation.steps):
        pass
    return run, next((step.title for step in curation.steps if step.gives_score), None)


def _column(run: Run, artifact: str, column: str) -> Sequence[Any]:
    parts = run.samples.parts if artifact == "samples" else run.artifacts[artifact].parts
    return [value for part in parts for value in read_columns(run.store, part.path, [column])[column].to_pylist()]
