"""The page of a comparison: every number of the result stands on it, and intervals are drawn where they lie."""

import json
import re
from dataclasses import replace

import pytest

from pipeline.comparison.page import headlines, sections, write_page
from pipeline.comparison.results import (
    Accuracy,
    ComparisonResult,
    Difference,
    MeanScore,
    SelectionFacts,
    TaskVerdict,
    Trained,
    print_comparison,
    read_comparison,
    write_comparison,
)
from pipeline.comparison.verdict import over_tasks
from pipeline.report.intervals import Line, draw_intervals
from pipeline.storage import Store

DIVERSITY = {
    "model": "raw",
    "clusters": 4,
    "collapse_below": 0.5,
    "before": {"samples": 100, "entropy": 1.3, "effective": 3.7, "largest_share": 0.3},
    "at_random": {"samples": 40, "entropy": 1.2, "effective": 3.3, "largest_share": 0.35},
    "after": {"samples": 40, "entropy": 0.7, "effective": 2.1, "largest_share": 0.6},
}


@pytest.fixture
def result() -> ComparisonResult:
    task = TaskVerdict(
        "scenes",
        "acc1",
        200,
        (
            Accuracy("all", (0.2, 0.3), 0.25, (0.0, 0.88), (0.21, 0.31)),
            Accuracy("dfn", (0.5, 0.6), 0.55, (0.0, 1.0), (0.51, 0.61)),
        ),
        (Difference("dfn", "all", 0.3, (0.2, 0.4), (0.25, 0.35)),),
    )
    return ComparisonResult(
        workspace="runs/c",
        baseline="all",
        seeds=(0, 1),
        samples_seen=640,
        selections=(
            SelectionFacts("all", (), None, 100, {}, {}, None),
            SelectionFacts(
                "dfn", ("score", "filter"), None, 40, {"alignment": MeanScore(0.2, 0.4)}, {"filter": 2.5}, DIVERSITY
            ),
        ),
        tasks=(task,),
        trained=(Trained("all", 0, "m", 100, 640, 1.5, 2.0),),
        warnings=("look here",),
    )


def test_the_page_says_what_was_found(result, tmp_path):
    store = Store(str(tmp_path))
    write_page(store, result, write_comparison(store, result))
    html = (tmp_path / "comparison.html").read_text()
    for words in (
        "comparison report",
        "55.0",
        "look here",
        "score → filter",
        "+0.3000 (+0.2500 to +0.3500)",
        "0.5100 to 0.6100",
        "of the mean, over test samples",
        "2.1",
        "3.3",
    ):
        assert words in html
    assert 'id="funnel"' not in html
    assert read_comparison(store) == result
    assert read_comparison(Store(str(tmp_path / "nothing"))) is None
    assert [section.id for section in sections(result)] == ["task-scenes", "selections"]
    assert headlines(result)[0].label == "acc1 of dfn"


def test_what_an_older_comparison_does_not_say_is_left_open(result, tmp_path):
    store = Store(str(tmp_path))
    record = json.loads(write_comparison(store, result))
    for selection in record["selections"]:
        del selection["seconds"]
    del record["mean"]
    store.replace("comparison.json", json.dumps(record).encode())
    found = read_comparison(store)
    assert [selection.seconds for selection in found.selections] == [{}, {}]
    assert found.mean is None
    assert "What they cost" not in write(store, found)


def test_the_mean_over_tasks_has_a_section_and_lines_of_its_own(result, tmp_path, capsys):
    (task,) = result.tasks
    whole = replace(
        result, tasks=(task, replace(task, task="words")), mean=over_tasks([task, task], "mean over 2 tasks")
    )
    store = Store(str(tmp_path))
    assert "Trained and tested: mean over 2 tasks" in write(store, whole)
    assert read_comparison(store) == whole
    print_comparison(whole)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()].count("mean over 2 tasks") == 2


def test_few_seeds_show_what_the_test_samples_tell(result, capsys):
    print_comparison(result)
    out = capsys.readouterr().out
    assert "0.5100 to 0.6100  +0.3000 (+0.2500 to +0.3500)" in out
    assert "2 seeds, each model saw 640 samples; intervals are over test samples (bootstrap), as what other" in out
    (task,) = result.tasks
    third = tuple(replace(found, values=(*found.values, found.mean)) for found in task.accuracies)
    print_comparison(replace(result, seeds=(0, 1, 2), tasks=(replace(task, accuracies=third),)))
    out = capsys.readouterr().out
    assert "0 to 1.0000  +0.3000 (+0.2000 to +0.4000)" in out
    assert "3 seeds, each model saw 640 samples; intervals are over seeds; those of differences are paired" in out


def write(store, result):
    write_page(store, result, write_comparison(store, result))
    return store.read("comparison.html").decode()


def test_an_open_interval_is_not_drawn():
    svg = draw_intervals("t", [Line("one", 0.5, None), Line("two", 0.4, (0.3, 0.5), dots=(0.35, 0.45))], "share")
    assert svg.count('class="span') == 1
    assert svg.count("<circle") == 2
    assert svg.count("<polygon") == 2


def test_an_interval_lies_about_its_mean_and_zero_is_marked():
    svg = draw_intervals("t", [Line("one", 0.5, (0.4, 0.6), thin=(0.3, 0.7), tone="kept")], "share", zero=True)
    thin, thick = (tuple(map(float, ends)) for ends in re.findall(r'class="span \w+" x1="([\d.]+)" x2="([\d.]+)"', svg))
    assert thin[0] < thick[0] < thick[1] < thin[1]
    assert sum(thin) == pytest.approx(sum(thick), abs=0.2)
    assert svg.count('class="mark"') == 1
    assert "one: 0.5, 95\N{NO-BREAK SPACE}% interval 0.4 to 0.6" in svg
