"""What every view shares: how a sample is shown, and what a view is given to tell its story."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.report.examples import Found
from pipeline.report.histogram import Histogram
from pipeline.report.page import Example, Section, number
from pipeline.report.scan import Column, Frame, Observation
from pipeline.steps.base import Step


@dataclass(frozen=True)
class Seen:
    """What a view saw of the whole pool.

    Attributes:
        observation: its own.
        found: the chosen samples of all views, by (shard index, row).
    """

    observation: Observation
    found: Mapping[tuple[int, int], Found]

    def histogram(self, name: str) -> Histogram | None:
        """A histogram with at least one value, or None."""
        counts = self.observation.histograms.get(name)
        return counts if counts is not None and counts.total else None

    def examples(self, group: str, artifact: str = "", badge: str = "") -> tuple[Example, ...]:
        """The chosen samples of a group.

        Args:
            group: its name.
            artifact: the step whose numbers come first.
            badge: which of these numbers stands on the thumbnail.
        """
        rows = self.observation.choices.get(group, [])
        return tuple(show(self.found[row.shard, row.row], artifact, badge) for row in rows)


class View(ABC):
    """One section of the report. A small frozen dataclass: it travels to the workers."""

    shown: ClassVar[int] = 10
    """Samples of a group at most."""

    @property
    def reads(self) -> Sequence[Column]:
        """The columns that `observe` looks at, besides the uid."""
        return ()

    def observe(self, frame: Frame) -> Observation:
        """Counts one shard's values and chooses rows to show of it."""
        return Observation()

    @abstractmethod
    def section(self, seen: Seen) -> Section | None:
        """Tells what was seen; None when there is nothing to tell."""


def show(found: Found, artifact: str = "", badge: str = "") -> Example:
    """A sample with the numbers of one step, the scores, and its size in pixels."""
    own = found.numbers.get(artifact, {})
    facts = [(name.replace("_", " "), number(value)) for name, value in own.items() if value is not None]
    facts += [(title, number(values["score"])) for title, values in found.numbers.items() if "score" in values]
    if found.size:
        facts.append(("size", f"{found.size[0]:,} × {found.size[1]:,} px"))
    small = found.thumbnail
    return Example(
        uid=found.uid,
        source=f"{found.shard} · {found.key}",
        caption=found.caption,
        image=small.uri if small else "",
        width=small.width if small else 0,
        height=small.height if small else 0,
        badge=_badge(own.get(badge)),
        facts=tuple(facts),
    )


def _badge(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else number(value)


def settings_text(step: Step) -> str:
    """The settings that are not the default, in words: `score alignment, keep_fraction 0.15`."""
    chosen = step.model_dump(mode="json", exclude={"step", "name"}, exclude_defaults=True)
    return ", ".join(f"{name}\N{NO-BREAK SPACE}{_value_text(value)}" for name, value in chosen.items())


def _value_text(value: Any) -> str:
    match value:
        case list():
            return " ".join(map(_value_text, value))
        case dict():  # of a source, what it is and where it lies, but never what opens it
            words = [f"{name} {_value_text(inner)}" for name, inner in value.items() if name != "storage"]
            return f"({', '.join(words)})"
    return number(value)
