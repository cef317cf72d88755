"""What is made of accuracies: intervals by hand, which selections are compared, and when there is a warning."""

import math

import pytest
from scipy import stats

from pipeline.comparison.results import Accuracy, Difference, MeanScore, TaskVerdict
from pipeline.comparison.selections import Selected
from pipeline.comparison.verdict import accuracy, mean_metric, pairs, warnings
from pipeline.training.trainer import TrainingResult

TRAINED = [TrainingResult("model", "metrics", 10, 0, 100, 10, 1.0, seconds, 0.0, 0.5) for seconds in (20.0, 30.0, 90.0)]


def selected(name, like=None, scores=None, found=(), seconds=None):
    return Selected(name, (), like, {}, 10, scores or {}, seconds or {}, warnings=found)


def verdict(*differences):
    accuracies = tuple(Accuracy(name, (0.1,), 0.1, None) for name in ("all", "random", "dfn"))
    return TaskVerdict("scenes", "acc1", 100, accuracies, differences)


def test_the_interval_of_a_mean_is_students():
    found = accuracy("dfn", [0.1, 0.2, 0.3])
    reach = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert (found.mean, found.interval) == (pytest.approx(0.2), pytest.approx((0.2 - reach, 0.2 + reach)))
    assert accuracy("dfn", [0.1]) == Accuracy("dfn", (0.1,), 0.1, None)


def test_the_mean_over_seeds_is_taken_for_every_draw():
    mean = mean_metric([lambda times: 1.0 if times is None else 0.0, lambda times: 0.5])
    assert (mean(None), mean([1, 0])) == (0.75, 0.25)


def test_each_is_compared_with_the_baseline_and_with_the_random_one_of_its_size():
    all_of_it, tenth, half = selected("all"), selected("tenth"), selected("half")
    random_tenth, random_half = selected("random_tenth", "tenth"), selected("random_half", "half")
    assert pairs("all", [all_of_it, tenth]) == [("tenth", "all")]
    assert pairs("all", [all_of_it, random_tenth, random_half, half, tenth]) == [
        ("random_tenth", "all"),
        ("random_half", "all"),
        ("half", "all"),
        ("tenth", "all"),
        ("all", "random_tenth"),
        ("half", "random_half"),
        ("tenth", "random_tenth"),
    ]


def test_a_difference_is_clear_when_both_intervals_are():
    assert Difference("dfn", "all", 0.2, (0.1, 0.3), (0.05, 0.4)).clear
    assert Difference("dfn", "all", -0.2, (-0.3, -0.1), (-0.4, -0.1)).clear
    assert not Difference("dfn", "all", 0.2, (0.1, 0.3), (-0.05, 0.4)).clear
    assert not Difference("dfn", "all", 0.2, None, (0.05, 0.4)).clear


def test_high_scores_with_low_accuracy_are_warned_of():
    chosen = [selected("random", "dfn"), selected("dfn", None, {"alignment": MeanScore(0.2, 0.4)}, ("dfn collapsed",))]
    worse = Difference("dfn", "random", -0.05, (-0.06, -0.04), (-0.07, -0.03))
    collapsed, scores = warnings(chosen, [verdict(worse)], TRAINED)
    assert collapsed == "dfn collapsed"
    assert scores.startswith(
        "selections.dfn: alignment rose from 0.2 to 0.4, and yet acc1 on scenes is 0.0500 below random's (its intervals"
    )
    better = Difference("dfn", "random", 0.05, (0.04, 0.06), (0.03, 0.07))
    assert warnings(chosen, [verdict(better)], TRAINED) == ["dfn collapsed"]
    unscored = [chosen[0], selected("dfn")]
    assert warnings(unscored, [verdict(worse)], TRAINED) == []


def test_a_step_that_costs_more_than_a_training_is_named():
    cheap, dear = selected("rules", seconds={"samples": 500.0, "rules": 29.0}), selected("mae", seconds={"m3ae": 31.0})
    (found,) = warnings([cheap, dear], [], TRAINED)
    assert found.startswith("selections.mae: m3ae took 31 s, longer than the 30 s of a training")
