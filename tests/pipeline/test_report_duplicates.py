"""The views of `semantic_dedup` and `sweep`: which groups they show, and what they tell."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifact import parquet_bytes
from pipeline.report.examples import Found
from pipeline.report.page import Bars, Chart, Gallery, Table
from pipeline.report.scan import Frame
from pipeline.report.views import semantic_dedup
from pipeline.report.views.base import Seen
from pipeline.report.views.semantic_dedup import Deduplicated, Group, choose_groups, removed_chart
from pipeline.report.views.sweep import Swept
from pipeline.report.views.verdicts import StepFacts
from pipeline.storage import Store

NONE = None
FACTS = StepFacts("dedup", "Near duplicates", "", 6, 3, {"semantic_duplicate": 3})


def uid(number: int) -> str:
    return f"{number:032x}"


def view(**changes) -> Deduplicated:
    groups = {"largest": (Group(-4, 0, uid(2)),), "drawn": (Group(-2, 9, uid(0)),)}
    settings = {"epsilon": 0.01, "removed": {0.005: 1, 0.01: 3}, "group_sizes": (1, 1), **groups}
    return Deduplicated(FACTS, **(settings | changes))


def look(of: Deduplicated) -> Seen:
    """One shard: row 1 is a reject with the uid of row 2; rows 3 and 4 went for row 2, and row 5 for row 0."""
    columns = {
        ("samples", "uid"): pa.array([bytes.fromhex(uid(n)) for n in (0, 2, 2, 3, 4, 5, 6)], pa.binary(16)),
        ("dedup", "kept"): [True, NONE, True, False, False, False, True],
        ("dedup", "detail.duplicate_of"): [NONE, NONE, NONE, uid(2), uid(2), uid(0), NONE],
        ("dedup", "detail.similarity"): [NONE, NONE, NONE, 0.991, 0.999, 0.995, NONE],
    }
    frame = Frame(
        0, np.arange(7, dtype=np.uint64), {name: pa.chunked_array([pa.array(c)]) for name, c in columns.items()}
    )
    assert set(columns) == set(of.reads)
    found = {}
    for row, similarity in enumerate(columns["dedup", "detail.similarity"]):
        numbers = {} if similarity is None else {"dedup": {"similarity": similarity}}
        found[0, row] = Found(uid(row), "0.tar", f"k{row}", "", None, numbers, None)
    return Seen(of.observe(frame), found)


def test_what_stays_comes_first_then_what_went_for_it_the_nearest_first():
    *_, largest, drawn = view().section(look(view())).blocks
    assert (largest.title, largest.note) == ("Group of 4", "One of the largest groups.")
    assert (drawn.title, drawn.note) == ("Group of 2", "A group drawn at random.")
    assert [(e.source, e.badge, e.tone) for e in largest.examples] == [
        ("0.tar · k2", "stays", "kept"),
        ("0.tar · k4", "0.999", "plain"),
        ("0.tar · k3", "0.991", "plain"),
    ]
    assert [(e.source, e.badge) for e in drawn.examples] == [("0.tar · k0", "stays"), ("0.tar · k5", "0.995")]


def test_the_curve_and_the_sizes():
    chart, bars, *galleries = view().section(look(view())).blocks
    assert isinstance(chart, Chart)
    assert "<title>epsilon 0.01: 3, 50.0\N{NO-BREAK SPACE}%</title>" in chart.svg
    assert "chosen: 0.01" in chart.svg
    assert isinstance(bars, Bars)
    assert [(bar.label, bar.count) for bar in bars.bars] == [("2 to 3 samples", 1), ("4 to 7 samples", 1)]
    assert (bars.headings, bars.wide) == (("Size", "Groups"), False)
    assert all(isinstance(gallery, Gallery) for gallery in galleries)


def test_nothing_is_near_anything():
    empty = view(removed={0.01: 0}, group_sizes=(), largest=(), drawn=())
    assert empty.section(look(empty)).blocks == ()


def test_a_pool_of_which_nothing_came_in():
    assert "epsilon 0.01: 0, 0\N{NO-BREAK SPACE}%" in removed_chart({0.01: 0}, 0, "").svg


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Without Ray: files are looked at one after the other."""
    monkeypatch.setattr(semantic_dedup, "spread", lambda function, items, *, workers: map(function, items))
    return SimpleNamespace(store=Store(str(tmp_path)), seed=0, workers=1)


def write(run, folder: str, files: list[list[int]]) -> None:
    """One group for each size, `files` of them; a member of the first stands in the last file, too."""
    number = 0
    for index, sizes in enumerate(files):
        rows = []
        for size in sizes:
            number += 1
            rows += [{"group": uid(1000 * number), "size": size, "uid": uid(1000 * number + i)} for i in range(size)]
        if index == len(files) - 1 and index:
            rows.append({"group": uid(1000), "size": files[0][0], "uid": uid(1500)})
        run.store.replace(f"{folder}/{index}.parquet", parquet_bytes(pa.Table.from_pylist(rows)))


def test_the_largest_groups_and_some_others_whatever_files_they_are_in(run):
    sizes = [2, 9, 3, 2, 7, 2, 2, 3, 5, 2, 2, 4, 2]
    write(run, "one", [sizes])
    write(run, "three", [sizes[:4], sizes[4:6], sizes[6:]])
    largest, drawn = choose_groups(run, sorted(run.store.find("one")))
    assert choose_groups(run, sorted(run.store.find("three"))) == (largest, drawn)
    assert [group.size for group in largest] == [9, 7, 5, 4]
    assert largest[0].uid == uid(2000)
    assert len(set(drawn)) == 4
    assert not set(largest) & set(drawn)
    assert [group.hash for group in drawn] == sorted(group.hash for group in drawn)


@pytest.mark.parametrize("sizes", [[], [2], [2, 2, 2, 2, 2]])
def test_few_groups(run, sizes):
    if sizes:
        write(run, "few", [sizes])
    largest, drawn = choose_groups(run, sorted(run.store.find("few")))
    assert (len(largest), len(drawn)) == (min(4, len(sizes)), max(0, len(sizes) - 4))


def five(*values) -> dict[str, float]:
    return dict(zip(("min", "q1", "median", "q3", "max"), values, strict=True))


NUMBERS = {
    "rows": 100,
    "clusters": [
        {"k": k, "inertia": 0.5 / k, "iterations": 7, "empty": 0, "sizes": five(1, 2, 3, 4, 50), "effective": k - 0.5,
         "largest_share": 0.5}
        for k in (4, 8)
    ],
    "epsilons": {"k": 4, "points": [{"epsilon": 0.01, "removed": 5, "share": 0.05}]},
    "temperatures": {
        "k": 8, "keep": 40,
        "points": [{"temperature": 0.1, "kept_share": five(0.25, 0.5, 0.5, 0.75, 1), "effective": 6, "at_floor": 2,
                    "whole": 3}],
    },
}  # fmt: skip


def test_a_sweep_shows_each_curve_and_its_numbers():
    section = Swept("sweep", "What to choose", "model raw", NUMBERS).section(None)
    charts = [block for block in section.blocks if isinstance(block, Chart)]
    assert [chart.title for chart in charts] == [
        "Inertia by k",
        "Sizes of clusters by k",
        "Effective number of clusters by k",
        "Share removed by epsilon",
        "Share kept of a cluster by temperature",
        "Effective number of clusters by temperature",
    ]
    assert "<title>k 8: 0.0625</title>" in charts[0].svg
    assert "<title>k 4: median 3, half from 2 to 4, all from 1 to 50</title>" in charts[1].svg
    clusters, duplicates, quotas = (block for block in section.blocks if isinstance(block, Table))
    assert [cell.text for cell in clusters.rows[1]] == [
        "8", "0.0625", "1", "2", "3", "4", "50", "7.5", "50.0\N{NO-BREAK SPACE}%", "0",
    ]  # fmt: skip
    assert [cell.value for cell in duplicates.rows[0]] == [0.01, 5, 0.05]
    assert [cell.value for cell in quotas.rows[0]] == [0.1, 0.25, 0.5, 0.5, 0.75, 1, 6, 2, 3]
    for table in (clusters, duplicates, quotas):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert section.intro == "Measured on the 100 samples that came in; nothing was dropped. Settings: model raw."


def test_a_sweep_of_clusters_alone():
    numbers = NUMBERS | {"epsilons": None, "temperatures": None}
    section = Swept("look", "What to choose: look", "", numbers).section(None)
    assert section.id == "step-look"
    assert [block.kind for block in section.blocks] == ["chart", "chart", "chart", "table"]
