"""Charts as inline SVG. Colours come from the page's classes, so that they follow its light and dark modes.

Every chart has a text alternative, and every mark a tooltip with its numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.report.histogram import Histogram
from pipeline.report.page import Tone, number, percent

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 18, 38
_MARK_LABEL_WIDTH, _LABEL_WIDTH = 110, 44

_RECT = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
_CIRCLE = Markup('<circle class="share-{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>')
_GRID_LINE = Markup(
    '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
    '<text x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
)

FATES: tuple[tuple[Tone, str], ...] = (("kept", "kept"), ("dropped", "dropped"))
"""The two series of most charts, and the two galleries of most groups."""


@dataclass(frozen=True)
class Axis:
    """A range of values over a range of pixels.

    Attributes:
        low, high: the values.
        start, end: their pixels.
        log2: whether a value x stands for 2^x.
        share: whether values are shown in percent.
        stops: values to mark, as far as there is room for their labels; round ones where there are none.
    """

    low: float
    high: float
    start: float
    end: float
    log2: bool = False
    share: bool = False
    stops: tuple[float, ...] = ()

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        """The values to mark: the stops, or about `count` others."""
        marked: list[float] = []
        for stop in self.stops:
            if not marked or abs(self(stop) - self(marked[-1])) >= _LABEL_WIDTH:
                marked.append(stop)
        values = marked or ticks(self.low, self.high, count)
        if self.log2 and not marked:
            return [value for value in values if value == int(value)] or [self.low, self.high]
        return values

    def label(self, value: float) -> str:
        """What a tick says."""
        if self.share:
            return f"{100 * value:.3g}\N{NARROW NO-BREAK SPACE}%"
        return short(2.0**value if self.log2 else value)


@dataclass(frozen=True)
class Mark:
    """A vertical line at a value, such as a threshold."""

    value: float
    label: str


@dataclass(frozen=True)
class Point:
    """One circle of a scatter: `size` sets its area, `share` in [0, 1] its colour."""

    x: float
    y: float
    size: int
    share: float
    label: str


def draw_histogram(
    counts: Histogram,
    series: Sequence[tuple[Tone, str]],
    label: str,
    marks: Sequence[Mark] = (),
    *,
    log2: bool = False,
) -> Markup:
    """Stacked bars, one for each bin.

    Args:
        counts: not empty; one row for each series.
        series: colour and name of each, the lowest of the stack first.
        label: of the horizontal axis.
        marks: thresholds; those outside the values are left out.
        log2: whether the values are binary logarithms of what is meant.
    """
    edges = [float(edge) for edge in counts.edges]
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT, log2)
    y = Axis(0, max(1, int(counts.counts_SB.sum(axis=0).max())), HEIGHT - BOTTOM, TOP)
    parts = [grid(y), base(x, HEIGHT - BOTTOM)]
    for i in range(counts.counts_SB.shape[1]):
        column = [int(count) for count in counts.counts_SB[:, i]]
        if not sum(column):
            continue
        # A hair between bars, but never less than a bar.
        left, width = x(edges[i]), max(1.0, x(edges[i + 1]) - x(edges[i]) - 1)
        facts = ", ".join(f"{number(count)} {name}" for count, (_, name) in zip(column, series, strict=True))
        tip = f"{x.label(edges[i])} to {x.label(edges[i + 1])}: {facts}"
        below = 0
        for count, (tone, _) in zip(column, series, strict=True):
            if count:
                top, bottom = y(below + count), y(below)
                height = max(bottom - top, 0.75)
                parts.append(_RECT.format(tone, left, bottom - height, width, height, tip))
                below += count
    parts += [draw_mark(mark, x) for mark in marks if x.low <= mark.value <= x.high]
    parts.append(axis_label(label))
    return svg(parts, f"Histogram of {label}, {number(counts.total)} samples")


def draw_scatter(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Circles; not empty. Small ones lie on top, so that none is hidden."""
    height = HEIGHT + 80
    x = _padded([point.x for point in points], LEFT, WIDTH - RIGHT)
    y = _padded([point.y for point in points], height - BOTTOM, TOP)
    largest = max(max(point.size for point in points), 1)
    scale = min(15.0, 90.0 / math.sqrt(len(points))) + 2.0
    parts = [grid(y), base(x, height - BOTTOM)]
    for point in sorted(points, key=lambda point: -point.size):
        radius = max(1.5, scale * math.sqrt(point.size / largest))
        tip = f"{point.label}: {percent(point.share, 1)} kept"
        parts.append(_CIRCLE.format(min(4, int(5 * point.share)), x(point.x), y(point.y), radius, tip))
    parts.append(axis_label(x_label, height))
    parts.append(Markup('<text x="0" y="9">{}</text>').format(y_label))
    return svg(parts, f"{x_label} against {y_label} of {len(points)} clusters", height)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) within a range, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number of at most five characters or so: `0.25`, `640`, `12k`, `3.4M`."""
    for least, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def _padded(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return Axis(low - margin, high + margin, start, end)


def grid(y: Axis) -> Markup:
    """Horizontal lines at the ticks, with their labels."""
    lines = [
        _GRID_LINE.format(LEFT, WIDTH - RIGHT, y(value), LEFT - 6, y(value) + 4, y.label(value)) for value in y.ticks(4)
    ]
    return Markup("").join(lines)


def base(x: Axis, bottom: float) -> Markup:
    """The horizontal axis with its ticks."""
    line = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, bottom, bottom)
    labels = [
        Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x(v), bottom + 15, x.label(v))
        for v in x.ticks(6)
    ]
    return line + Markup("").join(labels)


def draw_mark(mark: Mark, x: Axis) -> Markup:
    """The line of a mark, and its label on the side that has room."""
    at = x(mark.value)
    anchor, shift = ("end", -5) if at > WIDTH - _MARK_LABEL_WIDTH else ("start", 5)
    return Markup(
        '<line class="mark" x1="{:.1f}" x2="{:.1f}" y1="2" y2="{}"/>'
        '<text class="marked" x="{:.1f}" y="11" text-anchor="{}">{}</text>'
    ).format(at, at, HEIGHT - BOTTOM, at + shift, anchor, mark.label)


def axis_label(label: str, height: int = HEIGHT) -> Markup:
    """What the horizontal axis counts."""
    return Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(WIDTH - RIGHT, height - 6, label)


def svg(parts: Sequence[Markup], description: str, height: int = HEIGHT) -> Markup:
    """The drawing, with what it shows in words."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, escape(description), Markup("").join(parts)
    )
