"""Any step that judges: how many it dropped and why, with examples of each reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.page import Bar, Bars, Block, Chart, Gallery, Section, number, percent
from pipeline.report.scan import Column, Frame, Observation
from pipeline.report.views.base import Seen, View, settings_text
from pipeline.report.views.dendrogram import merge_charts
from pipeline.run import Run
from pipeline.steps.base import Step

_HEADINGS = {
    "rules": "Basic rules",
    "deny": "Deny lists",
    "exact_dedup": "Exact duplicates",
    "semantic_dedup": "Near duplicates",
    "decontaminate": "Decontamination",
    "filter": "Filter",
    "python": "Custom step",
    "prune": "Pruning",
}
_BADGES = {
    "min_side": "side",
    "max_side": "side",
    "max_aspect": "aspect",
    "min_words": "words",
    "max_words": "words",
    "min_chars": "chars",
    "language": "language",
    "below_cutoff": "value",
    "missed_threshold": "value",
    "out_of_range": "value",
    "semantic_duplicate": "similarity",
    "contaminated": "similarity",
}
"""Which of its numbers a dropped sample shows, by reason."""

_REASONS = 12
"""Reasons with examples at most, the most frequent first."""


@dataclass(frozen=True)
class StepFacts:
    """What is known of a verdict step before any shard is looked at.

    Attributes:
        title: of the step.
        heading: for people.
        settings: in words.
        rows_in, rows_out: samples before and after.
        reasons: reason -> samples dropped, the most frequent first.
        note: what else the kind of step has to say, in sentences.
        charts: of how it clustered, where it merged clusters.
    """

    title: str
    heading: str
    settings: str
    rows_in: int
    rows_out: int
    reasons: Mapping[str, int]
    note: str = ""
    charts: tuple[Chart, ...] = ()

    @property
    def lost(self) -> int:
        """Samples that ended here."""
        return self.rows_in - self.rows_out


@dataclass(frozen=True)
class Verdicts(View):
    """What one step did."""

    shown: ClassVar[int] = 10

    facts: StepFacts

    @property
    def title(self) -> str:
        """The step's."""
        return self.facts.title

    @property
    def reads(self) -> Sequence[Column]:
        """The reasons."""
        return ((self.title, "reason"),)

    def observe(self, frame: Frame) -> Observation:
        """Chooses examples of each reason."""
        names = list(self.facts.reasons)[:_REASONS]
        group_N = pc.fill_null(pc.index_in(frame[self.title, "reason"], pa.array(names, pa.string())), -1).to_numpy()
        return Observation(choices=frame.choose(names, np.asarray(group_N), self.shown))

    def section(self, seen: Seen) -> Section | None:
        """Counts, whatever else a kind of step has to show, and examples."""
        blocks = [*self.facts.charts, *self.details(seen), *self.dropped(seen)]
        intro = (
            f"{number(self.facts.rows_in)} samples came in, {number(self.facts.rows_out)} were kept "
            f"({percent(self.facts.rows_out, self.facts.rows_in)}) and {number(self.facts.lost)} dropped."
        )
        if self.facts.settings:
            intro += f" Settings: {self.facts.settings}."
        if self.facts.note:
            intro += f" {self.facts.note}"
        return Section(f"step-{self.title}", self.facts.heading, intro, tuple(blocks), label=self.title)

    def details(self, seen: Seen) -> Sequence[Block]:
        """What the kind of step has to show of itself; here the reasons, where there are several."""
        return [self.reason_bars()] if len(self.facts.reasons) > 1 else []

    def dropped(self, seen: Seen) -> Sequence[Block]:
        """Examples of what was dropped, by reason."""
        return [
            Gallery(
                f"Dropped: {reason}",
                examples,
                f"{number(self.facts.reasons[reason])} samples; a random few.",
                "dropped",
            )
            for reason in list(self.facts.reasons)[:_REASONS]
            if (examples := seen.examples(reason, self.title, _BADGES.get(reason, "")))
        ]

    def reason_bars(self) -> Bars:
        """How many samples each reason cost."""
        most = max(self.facts.reasons.values())
        bars = [
            Bar(reason, count, count / most, f"{percent(count, self.facts.rows_in)} of what came in")
            for reason, count in self.facts.reasons.items()
        ]
        return Bars("Why samples were dropped", tuple(bars))


def make_verdicts(run: Run, step: Step) -> Verdicts:
    """The view of a step without a view of its own."""
    return Verdicts(step_facts(run, step))


def reference_text(facts: Mapping[str, Any] | None) -> str:
    """What a reference set held (`pipeline.references.reference_facts`), in a sentence; empty where there is none."""
    if not facts:
        return ""
    text = f"Of {number(facts['samples'])} samples in the reference set, {number(facts['compared'])} could be compared"
    lost = [f"{number(count)} were rejected as {reason}" for reason, count in facts["rejected"].items()]
    if facts["damaged"]:
        lost.append(f"damaged were {', '.join(f'{shard} ({why})' for shard, why in facts['damaged'].items())}")
    return f"{'; '.join([text, *lost])}."


def step_facts(run: Run, step: Step, note: str = "") -> StepFacts:
    """The facts of a verdict step, from its settings and its parts' counts, and a note of its own."""
    artifact = run.artifacts[step.title]
    heading = _HEADINGS.get(step.step, step.step.replace("_", " ").capitalize())
    return StepFacts(
        title=step.title,
        heading=heading if step.title == step.step else f"{heading}: {step.title}",
        settings=settings_text(step),
        rows_in=artifact.total("in"),
        rows_out=artifact.total("kept"),
        reasons=artifact.totals("dropped"),
        note=" ".join(filter(None, [note, reference_text(artifact.info.get("reference"))])),
        charts=merge_charts(run, step),
    )
