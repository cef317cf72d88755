"""Charts: the numbers in them, and that they are SVG."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pipeline.report.figures import FATES, Mark, Point, draw_histogram, draw_scatter, short, ticks
from pipeline.report.histogram import Histogram


def test_bars_stack_and_say_their_numbers():
    # Two bins of width 1 from 0: two kept, then one kept below three dropped.
    svg = ET.fromstring(
        draw_histogram(Histogram(0, 0, np.array([[2, 1], [0, 3]])), FATES, "score", [Mark(1.0, "limit")])
    )
    bars = [(bar.get("class"), float(bar.get("y")), float(bar.get("height"))) for bar in svg.iter("rect")]
    assert [tone for tone, _, _ in bars] == ["kept", "kept", "dropped"]
    (_, _, two), (_, kept_top, one), (_, dropped_top, three) = bars
    assert two == pytest.approx(2 * one, abs=0.2)
    assert three == pytest.approx(3 * one, abs=0.2)
    assert dropped_top + three == pytest.approx(kept_top, abs=0.2)
    assert [title.text for title in svg.iter("title")] == [
        "0 to 1: 2 kept, 0 dropped",
        *["1 to 2: 1 kept, 3 dropped"] * 2,
    ]
    assert "limit" in [text.text for text in svg.iter("text")]
    assert svg.get("aria-label") == "Histogram of score, 6 samples"


def test_marks_outside_are_left_out_and_labels_are_escaped():
    counts = Histogram(0, 0, np.array([[1], [0]]))
    svg = draw_histogram(counts, FATES, "<b>&", [Mark(9.0, "far away")])
    assert "far away" not in svg
    assert "&lt;b&gt;&amp;" in svg
    ET.fromstring(svg)


def test_logarithmic_axis_shows_what_is_meant():
    svg = ET.fromstring(draw_histogram(Histogram(0, 4, np.ones((2, 4), int)), FATES, "pixels", log2=True))
    texts = [text.text for text in svg.iter("text")]
    assert {"16", "32", "64", "128", "256"} <= set(texts)


@pytest.mark.parametrize("points", [[(0.5, 0.5)], [(0.0, 0.0)] * 3, [(0.1, 0.9), (0.2, 0.1)]])
def test_scatter_stays_inside(points):
    given = [Point(x, y, 10 * i, i / 2, f"cluster {i}") for i, (x, y) in enumerate(points)]
    svg = ET.fromstring(draw_scatter(given, "x", "y"))
    circles = list(svg.iter("circle"))
    assert len(circles) == len(points)
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert all(0 < float(c.get("cx")) < width and 0 < float(c.get("cy")) < height for c in circles)


def test_scatter_colours_by_share():
    points = [Point(0, 0, 1, share, "") for share in (0.0, 0.19, 0.5, 0.99, 1.0)]
    svg = ET.fromstring(draw_scatter(points, "x", "y"))
    assert [circle.get("class") for circle in svg.iter("circle")] == [
        "share-0",
        "share-0",
        "share-2",
        "share-4",
        "share-4",
    ]


def test_ticks():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.15, 0.35, 4) == pytest.approx([0.15, 0.2, 0.25, 0.3, 0.35])
    assert ticks(-1, 1, 4) == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert ticks(3, 3) == [3]


def test_short():
    assert [short(v) for v in (0, 0.25, 640, 1234, 12_500, 3.4e6, 2e9)] == [
        "0", "0.25", "640", "1234", "12.5k", "3.4M", "2G",
    ]  # fmt: skip
