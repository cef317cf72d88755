"""Rows ranked within clusters or classes: how their values spread, in all and in each, and what was kept of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.figures import FATES, draw_histogram
from pipeline.report.histogram import histogram
from pipeline.report.page import Block, Chart, Gallery, Group, number
from pipeline.report.scan import Column, Frame, Observation
from pipeline.report.views.base import Seen
from pipeline.report.views.verdicts import Verdicts

_LARGEST, _EXTREME = 12, 6


@dataclass(frozen=True)
class Card:
    """A cluster or a class that is pictured.

    Attributes:
        id: its number.
        key: what it is called in the details of its rows: the number, or the name of a class.
        size, kept: its rows before and after.
        note: in words.
    """

    id: int
    key: int | str
    size: int
    kept: int
    note: str

    @property
    def share(self) -> float:
        """Of its rows, how many were kept."""
        return self.kept / self.size


@dataclass(frozen=True)
class Grouped(Verdicts):
    """What became of rows that were ranked within groups.

    Attributes:
        kind: what a group is: `cluster` or `class`; the detail that names a row's.
        value: the detail that rows are ranked by.
        meaning: of the value, in words.
        cards: the groups that are pictured, in order.
    """

    shown: ClassVar[int] = 10
    label: ClassVar[str]
    """Of the charts' axis."""

    kind: str
    value: str
    meaning: str
    cards: tuple[Card, ...]

    @property
    def reads(self) -> Sequence[Column]:
        """Verdicts, reasons, groups and values."""
        details = (f"detail.{self.kind}", f"detail.{self.value}")
        return (*super().reads, *((self.title, name) for name in ("kept", *details)))

    def observe(self, frame: Frame) -> Observation:
        """Counts the values, in all and by pictured group; chooses kept and dropped rows of these."""
        entered_N, kept_N = frame.flags(self.title)
        value_N = frame.floats((self.title, f"detail.{self.value}"))
        fate_N = (~kept_N).astype(np.int64)
        has_N = entered_N & np.isfinite(value_N)
        group = frame[self.title, f"detail.{self.kind}"]
        at = pc.index_in(group, pa.array([card.key for card in self.cards], group.type))
        at_N = np.where(has_N, pc.fill_null(at, -1).to_numpy(), -1)
        counts = {self.value: histogram(value_N[has_N], fate_N[has_N], 2)}
        for i, card in enumerate(self.cards):
            counts[f"{self.value}/{card.id}"] = histogram(value_N[at_N == i], fate_N[at_N == i], 2)
        names = [f"{card.id}/{fate}" for card in self.cards for _, fate in FATES]
        return Observation(counts, frame.choose(names, np.where(at_N >= 0, 2 * at_N + fate_N, -1), self.shown))

    def dropped(self, seen: Seen) -> Sequence[Block]:
        """The cards show what was dropped."""
        return ()

    def histograms(self, seen: Seen) -> list[Block]:
        """The values of all rows."""
        if not (counts := seen.histogram(self.value)):
            return []
        chart = draw_histogram(counts, FATES, self.label)
        return [Chart(f"Samples by {self.value}", chart, self.meaning, FATES)]

    def groups(self, seen: Seen) -> list[Block]:
        """A card for each pictured group: the values of its rows, and kept and dropped ones."""
        return [self._group(seen, card) for card in self.cards]

    def link(self, group: int) -> str:
        """Where a group's card is on the page; nowhere when it is not pictured."""
        return f"{self.title}-{self.kind}-{group}" if any(card.id == group for card in self.cards) else ""

    def _group(self, seen: Seen, card: Card) -> Group:
        blocks: list[Chart | Gallery] = []
        if counts := seen.histogram(f"{self.value}/{card.id}"):
            blocks.append(Chart("", draw_histogram(counts, FATES, self.label)))
        blocks += [
            Gallery(f"{number(count)} {name}", examples, tone=tone)
            for (tone, name), count in zip(FATES, (card.kept, card.size - card.kept), strict=True)
            if (examples := seen.examples(f"{card.id}/{name}", self.title, self.value))
        ]
        return Group(self.link(card.id), f"{self.kind.capitalize()} {card.key}", card.note, tuple(blocks))


def centroid_distance(metric: str) -> str:
    """What the distance of a sample to its centroid is, in words."""
    measure = "1 − cosine" if metric == "spherical" else "Half the squared distance"
    return f"{measure} of a sample to the centroid of its cluster."


def choose_cards(cards: Sequence[Card]) -> tuple[Card, ...]:
    """The groups to picture: the largest, then those of which most was kept, then those of which least was.

    Args:
        cards: by size, the largest first.
    """
    by_share = sorted(cards, key=lambda card: (card.share, -card.size))
    chosen = [*cards[:_LARGEST]]
    for ranked in (by_share[::-1], by_share):
        chosen += [card for card in ranked if card not in chosen][:_EXTREME]
    return tuple(chosen)
