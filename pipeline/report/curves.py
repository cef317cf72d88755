"""Curves as inline SVG, beside the histograms and scatters of `figures`: something measured at a few values of x > 0.

The horizontal axis is marked at the measured values themselves, and logarithmic unless it is asked to be linear.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from operators.evenness import FiveNumbers
from pipeline.report.figures import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Mark,
    axis_label,
    base,
    draw_mark,
    grid,
    svg,
    ticks,
)
from pipeline.report.page import Tone

Scale = Literal["linear", "log", "share"]
"""Of the vertical axis: from 0, logarithmic, or shares in percent from 0."""

SPREAD_LEGEND = (("kept", "median"), ("band", "middle half"), ("reach", "smallest to largest"))

_BOX_WIDTH = 10

_LINE = Markup('<polyline class="line {}" points="{}"/>')
_DOT = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>')
_BAND = Markup('<polygon class="band" points="{}"/>')
_REACH = Markup('<line class="reach" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>')
_BOX = Markup('<rect class="band" x="{:.1f}" y="{:.1f}" width="{}" height="{:.1f}"><title>{}</title></rect>')


@dataclass(frozen=True)
class Knot:
    """A measured point; the label is its tooltip."""

    x: float
    y: float
    label: str = ""


@dataclass(frozen=True)
class Curve:
    """Points by rising x, joined by a line; a `plain` one is dashed, for comparison, and its points are not marked."""

    tone: Tone
    knots: tuple[Knot, ...]


@dataclass(frozen=True)
class Spread:
    """How some things differ at one x; the label is the tooltip."""

    x: float
    numbers: FiveNumbers
    label: str


def draw_curves(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    *,
    scale: Scale = "linear",
    marks: Sequence[Mark] = (),
    x_scale: Literal["linear", "log"] = "log",
) -> Markup:
    """Lines through measured points.

    Args:
        title: what is shown, for those who cannot see it.
        curves: not empty, nor any of them; later ones lie on top.
        x_label: of the horizontal axis.
        scale: of the vertical axis.
        marks: values of x.
        x_scale: of the horizontal axis.
    """
    knots = [knot for curve in curves for knot in curve.knots]
    x, y = _horizontal((knot.x for knot in knots), x_scale), _vertical((knot.y for knot in knots), scale)
    parts = [grid(y), base(x, HEIGHT - BOTTOM)]
    for curve in curves:
        places = [(x(_on(x_scale, knot.x)), y(_on(scale, knot.y))) for knot in curve.knots]
        parts.append(_LINE.format(curve.tone, _points(places)))
        if curve.tone != "plain":
            dots = zip(places, curve.knots, strict=True)
            parts += [_DOT.format(curve.tone, *place, knot.label) for place, knot in dots]
    parts += [draw_mark(Mark(_on(x_scale, mark.value), mark.label), x) for mark in marks]
    parts.append(axis_label(x_label))
    return svg(parts, _in_words(title, [knot.label for knot in curves[-1].knots]))


def draw_spreads(title: str, spreads: Sequence[Spread], x_label: str, *, scale: Scale = "linear") -> Markup:
    """The median as a line, half of the values as a band around it, and all of them as vertical lines.

    Args:
        title: what is shown, for those who cannot see it.
        spreads: not empty, by rising x; numbers above 0 where the scale is logarithmic.
        x_label: of the horizontal axis.
        scale: of the vertical axis.
    """
    x = _horizontal(spread.x for spread in spreads)
    y = _vertical((value for spread in spreads for value in spread.numbers), scale)
    at = [x(math.log2(spread.x)) for spread in spreads]
    least, q1, median, q3, most = zip(*([y(_on(scale, v)) for v in spread.numbers] for spread in spreads), strict=True)
    outline = [*zip(at, q3, strict=True), *reversed([*zip(at, q1, strict=True)])]
    parts = [grid(y), base(x, HEIGHT - BOTTOM), _BAND.format(_points(outline))]
    for i, spread in enumerate(spreads):
        parts.append(_REACH.format(at[i], most[i], least[i]))
        parts.append(_BOX.format(at[i] - _BOX_WIDTH / 2, q3[i], _BOX_WIDTH, max(q1[i] - q3[i], 1.0), spread.label))
    parts.append(_LINE.format("kept", _points([*zip(at, median, strict=True)])))
    parts += [_DOT.format("kept", at[i], median[i], spread.label) for i, spread in enumerate(spreads)]
    parts.append(axis_label(x_label))
    return svg(parts, _in_words(title, [spread.label for spread in spreads]))


def _horizontal(values: Iterable[float], scale: Literal["linear", "log"] = "log") -> Axis:
    stops = tuple(sorted({_on(scale, value) for value in values}))
    margin = 0.08 * (stops[-1] - stops[0]) or 1.0
    return Axis(stops[0] - margin, stops[-1] + margin, LEFT, WIDTH - RIGHT, log2=scale == "log", stops=stops)


def _vertical(values: Iterable[float], scale: Scale) -> Axis:
    known = [_on(scale, value) for value in values]
    if scale == "log":
        low, high = math.floor(min(known)), math.ceil(max(known))
        return Axis(low, max(high, low + 1), HEIGHT - BOTTOM, TOP, log2=True)
    step = ticks(0, max(known) or 1.0, 4)[1]
    return Axis(0, step * math.ceil(max(known) / step - 1e-9) or step, HEIGHT - BOTTOM, TOP, share=scale == "share")


def _on(scale: Scale, value: float) -> float:
    return math.log2(value) if scale == "log" else value


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _in_words(title: str, labels: Sequence[str]) -> str:
    return f"{title}. {'; '.join(labels)}"
