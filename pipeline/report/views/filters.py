"""A filter: where its threshold lies among the values, and what lies just on either side of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.figures import FATES, Mark, draw_histogram
from pipeline.report.histogram import histogram
from pipeline.report.page import Block, Cell, Chart, Gallery, Group, Table, number
from pipeline.report.page import Column as Heading
from pipeline.report.scan import Column, Frame, Observation
from pipeline.report.views.base import Seen
from pipeline.report.views.verdicts import Verdicts, step_facts
from pipeline.run import Run
from pipeline.steps.diversity import describe, stages

_DIVERSITY = (
    Heading("samples", numeric=False),
    Heading("number", help="that have an embedding"),
    Heading("effective clusters", help="clusters of equal size that would be as diverse: exp of the entropy"),
    Heading("entropy", help="of the clusters' shares, in nats"),
    Heading("largest cluster", share=True),
)
_BORDER = ("border/kept", "border/dropped")


@dataclass(frozen=True)
class Filtered(Verdicts):
    """What a filter did.

    Attributes:
        value: what is filtered by.
        thresholds: the values at which the verdict changes.
        diversity: what came in next to what was kept, where that was measured.
    """

    value: str
    thresholds: tuple[float, ...]
    diversity: tuple[Block, ...] = ()

    @property
    def reads(self) -> Sequence[Column]:
        """Verdicts, reasons and values."""
        return (*super().reads, (self.title, "kept"), (self.title, "detail.value"))

    def observe(self, frame: Frame) -> Observation:
        """Counts the values; chooses the samples nearest to a threshold besides examples of each reason."""
        seen = super().observe(frame)
        entered_N, kept_N = frame.flags(self.title)
        values_N = frame.floats((self.title, "detail.value"))
        has_N = entered_N & np.isfinite(values_N)
        dropped_N = (~kept_N).astype(np.int64)
        seen.histograms["value"] = histogram(values_N[has_N], dropped_N[has_N], 2)
        if self.thresholds:
            away_N = np.abs(values_N[:, None] - np.array(self.thresholds)).min(axis=1)
            seen.choices |= frame.choose(_BORDER, np.where(has_N, dropped_N, -1), self.shown, away_N)
        return seen

    def details(self, seen: Seen) -> Sequence[Block]:
        """The values, and the samples on both sides of the threshold."""
        blocks: list[Block] = [*self.diversity]
        if counts := seen.histogram("value"):
            marks = [Mark(value, f"threshold {number(value)}") for value in self.thresholds]
            chart = draw_histogram(counts, FATES, self.value, marks)
            blocks.append(Chart(f"Samples by {self.value}", chart, legend=FATES))
        galleries = tuple(
            Gallery(f"Just {name}", examples, tone=tone)
            for group, (tone, name) in zip(_BORDER, FATES, strict=True)
            if (examples := seen.examples(group, self.title, "value"))
        )
        if galleries:
            note = "The samples nearest to it. If these look wrong, so is the threshold."
            blocks.append(Group(f"{self.title}-border", "On both sides of the threshold", note, galleries))
        if len(self.facts.reasons) > 1:
            blocks.append(self.reason_bars())
        return blocks


def make_filter(run: Run, step: Any) -> Filtered:
    """The view of a `filter` step."""
    info = run.artifacts[step.title].info
    thresholds = [value for value in (info.get("threshold"), step.min, step.max) if value is not None]
    notes = [_note(info["estimate"], info["threshold_file"])] if "estimate" in info else []
    found = info.get("diversity")
    if found:
        notes += [describe(found), *info.get("warnings", ())]
    blocks = (_diversity_table(found),) if found else ()
    facts = step_facts(run, step, " ".join(notes))
    return Filtered(facts, step.score or step.column or "draw", tuple(thresholds), blocks)


def _diversity_table(found: Mapping[str, Any]) -> Table:
    """What came in, and as many as were kept at random, next to what was kept."""
    rows = tuple(
        (
            Cell(name, name),
            Cell(number(stage.samples), stage.samples),
            Cell(f"{stage.effective:,.1f}", stage.effective),
            Cell(f"{stage.entropy:.3f}", stage.entropy),
            Cell(f"{stage.largest_share:.1%}", stage.largest_share),
        )
        for name, stage in zip(("came in", "as many at random", "kept"), stages(found), strict=True)
    )
    return Table(f"Diversity by {number(found['clusters'])} clusters", _DIVERSITY, rows)


def _note(estimate: Mapping[str, Any], path: str) -> str:
    """What an estimated threshold is worth."""
    (low, high), (least, most) = estimate["pool_interval"], estimate["source_interval"]
    return (
        f"The threshold {number(estimate['value'])} is that of {number(estimate['subset'])} drawn samples, and keeps "
        f"{estimate['kept_share']:.2%} of all {number(estimate['rows'])}; with a confidence of "
        f"{number(estimate['confidence'])} these had to be {low:.2%} to {high:.2%}, and of another pool from the same "
        f"source {least:.2%} to {most:.2%}. It is stored in {path}."
    )
