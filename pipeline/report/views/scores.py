"""A score that no filter reads: how its values are spread."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.figures import draw_histogram
from pipeline.report.histogram import histogram
from pipeline.report.page import Block, Chart, Gallery, Group, Section, number
from pipeline.report.scan import Column, Frame, Observation
from pipeline.report.views.base import Seen, View

_ENDS = ("highest", "lowest")


@dataclass(frozen=True)
class Scores(View):
    """The values of one score step, by title."""

    title: str

    @property
    def reads(self) -> Sequence[Column]:
        """The score."""
        return ((self.title, "score"),)

    def observe(self, frame: Frame) -> Observation:
        """Counts the values; chooses both ends."""
        score_N = frame.floats((self.title, "score"))
        one_N = np.zeros(len(score_N), np.int64)
        seen = Observation({"score": histogram(score_N, one_N, 1)})
        group_N = np.where(np.isfinite(score_N), 0, -1)
        for end, sign in zip(_ENDS, (-1.0, 1.0), strict=True):
            seen.choices |= frame.choose([end], group_N, self.shown, sign * score_N)
        return seen

    def section(self, seen: Seen) -> Section | None:
        """The histogram and the samples at both ends."""
        counts = seen.histogram("score")
        if counts is None:
            return None
        blocks: list[Block] = [
            Chart(f"Samples by {self.title}", draw_histogram(counts, [("kept", "samples")], self.title))
        ]
        ends = tuple(Gallery(f"The {end}", seen.examples(end, self.title, "score")) for end in _ENDS)
        blocks.append(Group(f"{self.title}-ends", "Both ends", "", ends))
        intro = f"{number(counts.total)} samples have this score. No filter reads it."
        return Section(f"step-{self.title}", f"Score: {self.title}", intro, tuple(blocks), label=self.title)
