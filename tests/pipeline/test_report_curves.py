"""Curves: where their points lie, what they say, and that they are SVG."""

import xml.etree.ElementTree as ET

import pytest

from operators.evenness import FiveNumbers
from pipeline.report.curves import Curve, Knot, Spread, draw_curves, draw_spreads
from pipeline.report.figures import HEIGHT, WIDTH, Mark


def curve(tone: str, **points: float) -> Curve:
    return Curve(tone, tuple(Knot(float(x[1:]), y, f"{x} is {y}") for x, y in points.items()))


def places(line: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, place.split(","))) for place in line.get("points").split()]


def texts(svg: ET.Element) -> list[str]:
    return [text.text for text in svg.iter("text")]


def test_points_are_even_in_the_logarithm_and_proportional_in_the_share():
    svg = ET.fromstring(draw_curves("Share by x", [curve("dropped", x1=0.0, x10=0.1, x100=0.4)], "x", scale="share"))
    (line,) = svg.iter("polyline")
    (left, bottom), (middle, low), (right, high) = places(line)
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    assert bottom - high == pytest.approx(4 * (bottom - low), abs=0.5)
    assert [(c.get("class"), c.find("title").text) for c in svg.iter("circle")] == [
        ("dropped", "x1 is 0.0"),
        ("dropped", "x10 is 0.1"),
        ("dropped", "x100 is 0.4"),
    ]
    assert {"1", "10", "100", "x"} < set(texts(svg))
    assert {text for text in texts(svg) if "%" in text} == {
        f"{n}\N{NARROW NO-BREAK SPACE}%" for n in (0, 10, 20, 30, 40)
    }
    assert svg.get("aria-label") == "Share by x. x1 is 0.0; x10 is 0.1; x100 is 0.4"


def test_a_plain_curve_is_for_comparison():
    svg = ET.fromstring(draw_curves("t", [curve("plain", x1=1, x2=2), curve("kept", x1=1, x2=1)], "x"))
    assert [line.get("class") for line in svg.iter("polyline")] == ["line plain", "line kept"]
    assert [circle.get("class") for circle in svg.iter("circle")] == ["kept", "kept"]


def test_a_mark_stands_at_its_value():
    svg = ET.fromstring(draw_curves("t", [curve("kept", x1=1, x4=2, x16=2)], "x", marks=[Mark(4, "chosen: 4")]))
    (line,) = svg.iter("polyline")
    (mark,) = (line for line in svg.iter("line") if line.get("class") == "mark")
    assert float(mark.get("x1")) == pytest.approx(places(line)[1][0], abs=0.1)
    assert "chosen: 4" in texts(svg)


@pytest.mark.parametrize("points", [{"x7": 0.0}, {"x1000": 5}, {"x1": 3, "x50000": 3}, {"x3": 0, "x4": 0}])
@pytest.mark.parametrize("scale", ["linear", "share"])
def test_few_or_equal_points_stay_inside(points, scale):
    svg = ET.fromstring(draw_curves("t", [curve("kept", **points)], "x", scale=scale))
    for circle in svg.iter("circle"):
        assert 0 < float(circle.get("cx")) < WIDTH
        assert 0 < float(circle.get("cy")) < HEIGHT


def test_labels_that_have_no_room_are_left_out():
    crowded = {f"x{1000 + i}": i for i in range(40)} | {"x2000": 1}
    svg = ET.fromstring(draw_curves("t", [curve("kept", **crowded)], "x"))
    shown = [text for text in texts(svg) if text.startswith("1") or text == "2000"]
    assert "1000" in shown
    assert "2000" in shown
    assert "1001" not in shown


def test_spreads_say_all_five_numbers():
    spreads = [Spread(k, FiveNumbers(1, 4, 16, 32, 64), f"k {k}") for k in (10, 100)]
    svg = ET.fromstring(draw_spreads("Sizes by k", spreads, "k", scale="log"))
    (band,), (median,) = svg.iter("polygon"), svg.iter("polyline")
    reach = [line for line in svg.iter("line") if line.get("class") == "reach"]
    (x, y), _ = places(median)
    (_, q3), _, _, (_, q1) = places(band)
    most, least = float(reach[0].get("y1")), float(reach[0].get("y2"))
    octave = (least - most) / 6
    assert [(least - place) / octave for place in (q1, y, q3)] == pytest.approx([2, 4, 5], abs=0.05)
    assert float(reach[0].get("x1")) == pytest.approx(x, abs=0.1)
    assert [title.text for title in svg.iter("title")] == ["k 10", "k 100"] * 2
    assert svg.get("aria-label") == "Sizes by k. k 10; k 100"


@pytest.mark.parametrize("scale", ["linear", "log", "share"])
def test_spreads_without_any_spread(scale):
    svg = ET.fromstring(draw_spreads("t", [Spread(5, FiveNumbers(1, 1, 1, 1, 1), "five")], "x", scale=scale))
    (box,) = svg.iter("rect")
    assert float(box.get("height")) == 1.0
    (dot,) = svg.iter("circle")
    assert 0 < float(dot.get("cy")) < HEIGHT


def test_labels_are_escaped():
    svg = draw_curves("<t>", [Curve("kept", (Knot(1, 1, "<b>&"),))], "<x>", marks=[Mark(1, "<m>")])
    assert "<b>" not in svg
    assert "<m>" not in svg
    assert ET.fromstring(svg).get("aria-label") == "<t>. <b>&"
