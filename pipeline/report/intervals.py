"""Numbers with their intervals as inline SVG, one line of the chart for each, side by side on one axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.figures import BOTTOM, RIGHT, WIDTH, Axis, axis_label, svg, ticks
from pipeline.report.page import Tone, number

Interval = tuple[float, float] | None

_NAMES = 140
"""Pixels for the names of the lines."""
_ROW, _TOP, _DIAMOND = 34, 8, 6.0
_LONGEST_NAME = 19
_HALF_A_LABEL = 10

_NAME = Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>')
_SPAN = Markup('<line class="span {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
_DOT = Markup('<circle class="seed {}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
_MEAN = Markup('<polygon class="mean {}" points="{}"><title>{}</title></polygon>')
_TICK = Markup(
    '<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/><text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
)


@dataclass(frozen=True)
class Line:
    """One line of the chart.

    Attributes:
        name: at its left.
        value: the diamond.
        interval: the thick line around it; None where it is open.
        thin: the thin line around it, such as an interval of another kind.
        dots: single values behind the mean.
        tone: of all of it.
    """

    name: str
    value: float
    interval: Interval
    thin: Interval = None
    dots: tuple[float, ...] = ()
    tone: Tone = "plain"

    @property
    def label(self) -> str:
        """All its numbers."""
        words = f"{self.name}: {number(self.value)}"
        if self.interval is None:
            return words
        low, high = self.interval
        return f"{words}, 95\N{NO-BREAK SPACE}% interval {number(low)} to {number(high)}"


def draw_intervals(title: str, lines: Sequence[Line], label: str, *, zero: bool = False) -> Markup:
    """Lines, one below the other.

    Args:
        title: what is shown, for those who cannot see it.
        lines: not empty.
        label: of the horizontal axis, which shows shares in percent.
        zero: whether zero is marked, as the border between better and worse.
    """
    ends = [end for line in lines for interval in (line.interval, line.thin) for end in interval or ()]
    known = [*ends, *(value for line in lines for value in (line.value, *line.dots)), *([0.0] if zero else [])]
    low, high = min(known), max(known)
    margin = 0.06 * (high - low) or 0.01
    height = _TOP + _ROW * len(lines) + BOTTOM
    x = Axis(low - margin, high + margin, _NAMES, WIDTH - RIGHT - _HALF_A_LABEL, share=True)
    parts = [_draw_tick(x, value, height, marked=zero and value == 0) for value in ticks(x.low, x.high, 5)]
    for row, line in enumerate(lines):
        parts += _draw_line(line, x, _TOP + _ROW * (row + 0.5))
    parts.append(axis_label(label, height))
    return svg(parts, f"{title}. {'; '.join(line.label for line in lines)}", height)


def _draw_line(line: Line, x: Axis, y: float) -> list[Markup]:
    name = line.name if len(line.name) <= _LONGEST_NAME else f"{line.name[: _LONGEST_NAME - 1]}…"
    parts = [_NAME.format(_NAMES - 12, y + 4, name, line.label)]
    for weight, interval in (("thin", line.thin), (line.tone, line.interval)):
        if interval:
            parts.append(_SPAN.format(weight, x(interval[0]), x(interval[1]), y, y))
    parts += [_DOT.format(line.tone, x(value), y) for value in line.dots]
    at = x(line.value)
    corners = ((at - _DIAMOND, y), (at, y - _DIAMOND), (at + _DIAMOND, y), (at, y + _DIAMOND))
    parts.append(_MEAN.format(line.tone, " ".join(f"{a:.1f},{b:.1f}" for a, b in corners), line.label))
    return parts


def _draw_tick(x: Axis, value: float, height: int, *, marked: bool) -> Markup:
    at, bottom = x(value), height - BOTTOM
    return _TICK.format("mark" if marked else "grid", at, at, _TOP, bottom, at, bottom + 15, x.label(value))
