"""The pool as a whole: the kept next to the dropped, how sizes and captions are spread, and where to look next."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow.compute as pc

from pipeline.report.figures import draw_histogram
from pipeline.report.histogram import histogram
from pipeline.report.page import Block, Chart, Command, Gallery, Section, Tone
from pipeline.report.scan import Column, Frame, Observation
from pipeline.report.views.base import Seen, View

_FATES = ("kept", "dropped")
_FINEST = -2
"""Bins of a quarter of an octave: pixels and characters are whole numbers."""

_SIDE, _CAPTION = "smaller side of the image, pixels", "length of the caption, characters"


@dataclass(frozen=True)
class Glance(View):
    """A random few of both fates; `last` is the title of the last verdict step."""

    shown: ClassVar[int] = 20

    last: str

    @property
    def reads(self) -> Sequence[Column]:
        """The last verdict, and what was rejected before the first."""
        return ((self.last, "kept"), ("unique_uid", "kept"))

    def observe(self, frame: Frame) -> Observation:
        """Chooses among the kept and among the dropped; rejects have a section of their own."""
        _, sound_N = frame.flags("unique_uid")
        _, kept_N = frame.flags(self.last)
        return Observation(choices=frame.choose(_FATES, np.where(sound_N, (~kept_N).astype(np.int64), -1), self.shown))

    def section(self, seen: Seen) -> Section | None:
        """Two galleries."""
        kept, dropped = (seen.examples(fate) for fate in _FATES)
        blocks = [Gallery("Kept, at random", kept, tone="kept")] if kept else []
        blocks += [Gallery("Dropped, at random", dropped, tone="dropped")] if dropped else []
        intro = "A random few of what is in the training set, and of what any step took out. Press one for its numbers."
        return Section("glance", "At a glance", intro, tuple(blocks)) if blocks else None


@dataclass(frozen=True)
class Distributions(View):
    """Image sizes and caption lengths of the pool; `last` is the title of the last verdict step."""

    last: str

    @property
    def reads(self) -> Sequence[Column]:
        """Sizes, captions and the last verdict."""
        return (("samples", "width"), ("samples", "height"), ("samples", "caption"), (self.last, "kept"))

    def observe(self, frame: Frame) -> Observation:
        """Counts binary logarithms, since both quantities span orders of magnitude."""
        _, kept_N = frame.flags(self.last)
        side_N = np.fmin(frame.floats(("samples", "width")), frame.floats(("samples", "height")))
        length_N = pc.fill_null(pc.utf8_length(frame["samples", "caption"]), 0).to_numpy().astype(np.float64)
        fate_N = (~kept_N).astype(np.int64)
        with np.errstate(divide="ignore"):
            return Observation(
                {
                    _SIDE: histogram(np.log2(side_N), fate_N, 2, _FINEST),
                    _CAPTION: histogram(np.log2(length_N), fate_N, 2, _FINEST),
                }
            )

    def section(self, seen: Seen) -> Section | None:
        """Two histograms."""
        legend: tuple[tuple[Tone, str], ...] = (("kept", "kept"), ("dropped", "dropped or rejected"))
        charts: list[Block] = [
            Chart(title, draw_histogram(counts, legend, name, log2=True), legend=legend)
            for name, title in ((_SIDE, "Image sizes"), (_CAPTION, "Caption lengths"))
            if (counts := seen.histogram(name))
        ]
        intro = "Sizes and lengths of everything that could be read, on a logarithmic axis."
        return Section("pool", "The pool", intro, tuple(charts)) if charts else None


@dataclass(frozen=True)
class Further(View):
    """Where to look next; `workspace` as it is typed."""

    workspace: str

    def section(self, seen: Seen) -> Section | None:
        """Commands."""
        place = shlex.quote(self.workspace)
        blocks = (
            Command(f"winnow why {place} UID", "What happened to one sample. The uid is on its card above."),
            Command(
                f"winnow export {place} --format webdataset --to PATH",
                "What was kept, written once more with the original bytes.",
            ),
        )
        intro = (
            "Every sample of the pool has one row in the ledger: its verdict, the reason, and the numbers behind it."
        )
        return Section("further", "Look further", intro, blocks)
