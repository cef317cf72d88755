"""The history of a nightly workspace on its report."""

import pytest

from pipeline.report.history import find_nights, history_sections
from pipeline.report.page import Chart, Report, Table, render
from pipeline.snapshots import make_current, publish_snapshot
from pipeline.storage import Store


def snapshot(number, value=0.05, mark=""):
    drift = [
        {"measure": "score", "of": "alignment", "value": value, "chance": 0.02, "mark": mark, "threshold": 0.1},
        {"measure": "score", "of": "other", "value": 0.01, "chance": 0.02, "mark": "", "threshold": None},
        {"measure": "pressure", "of": "prune", "value": 0.012, "chance": 0.02, "mark": "", "threshold": None},
    ]
    return {
        "format_version": 1,
        "id": number,
        "parent": number - 1 or None,
        "policy": "append",
        "shards": {"new": ["a", "b"]},
        "counts": {"seen": 1000 * number, "kept": 400 * number},
        "diff": {"added": 400, "removed": 0},
        "drift": [] if number == 1 else drift,
    }


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_no_nights_no_section(store):
    assert history_sections(find_nights(store)) == []


def test_a_night_that_is_about_to_be_published_is_shown(store):
    publish_snapshot(store, snapshot(1))
    pending = find_nights(store, snapshot(2, 0.4, "warn"))
    publish_snapshot(store, snapshot(2, 0.4, "warn"))
    assert pending == find_nights(store)
    assert [(night.id, night.is_shown) for night in pending] == [(1, False), (2, True)]
    assert pending[1].drift["score"] == (0.4, "warn")


def test_the_section(store):
    for number in (1, 2, 3, 4):
        publish_snapshot(store, snapshot(number, 0.05 * number, "warn" if number > 2 else ""))
    make_current(store, 3)
    store.replace("snapshots/0003.night.json", b'{"started": "2026-11-21T02:00:07Z"}')
    (section,) = history_sections(find_nights(store))
    table, *charts = section.blocks
    assert isinstance(table, Table)
    assert [cell.text for cell in table.rows[1]] == [
        *("3 (this report)", "2026-11-21 02:00", "append"),
        *("2", "3,000", "400", "0", "1,200", "-", "15.0\N{NO-BREAK SPACE}% !", "-"),
        "1.2\N{NO-BREAK SPACE}%",
    ]
    assert [chart.title for chart in charts if isinstance(chart, Chart)] == [
        *("Samples", "Drift: scores", "Drift: far rows")
    ]
    # That of an earlier snapshot says which one it is of.
    assert [night.id for night in find_nights(store, snapshot(2)) if night.is_shown] == [2]
    page = render(Report("t", "w", "d", (), (), (section,)))
    assert b"snapshot 4: 20.0" in page
