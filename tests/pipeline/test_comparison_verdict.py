"""What is made of accuracies: intervals by hand, which selections are compared, and when there is a warning."""

import math

import pytest
from scipy import stats

from pipeline.comparison import verdict as verdicts
from pipeline.comparison.results import Accuracy, Difference, MeanScore, TaskVerdict
from pipeline.comparison.selections import Selected
from pipeline.comparison.verdict import Contrast, accuracy, at_chance, mean_metric, over_tasks, pairs, warnings
from pipeline.evaluation.results import Result
from pipeline.storage import Store
from pipeline.training.trainer import TrainingResult

TRAINED = [TrainingResult("model", "metrics", 10, 0, 100, 10, 1.0, seconds, 0.0, 0.5) for seconds in (20.0, 30.0, 90.0)]


def selected(name, like=None, scores=None, found=(), seconds=None, titles=()):
    return Selected(name, (), like, {}, 10, scores or {}, seconds or {}, warnings=found, titles=titles)


def verdict(*differences):
    accuracies = tuple(Accuracy(name, (0.1,), 0.1, None) for name in ("all", "random", "dfn"))
    return TaskVerdict("scenes", "acc1", 100, accuracies, differences)


def test_the_interval_of_a_mean_is_students():
    found = accuracy("dfn", [0.3, 0.4, 0.5])
    reach = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert (found.mean, found.interval) == (pytest.approx(0.4), pytest.approx((0.4 - reach, 0.4 + reach)))
    assert accuracy("dfn", [0.1]) == Accuracy("dfn", (0.1,), 0.1, None)
    assert accuracy("dfn", [0.1, 0.9]).interval == (0.0, 1.0)  # of 12.7 standard errors, which no accuracy can be
    assert accuracy("dfn", [0.1, 0.9], (0.4, 0.6)).shown == (0.4, 0.6)
    assert accuracy("dfn", [0.3, 0.4, 0.5], (0.1, 0.3)).shown == found.interval


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
    shared = {"samples": 500.0, "clip.image": 400.0, "unique_uid": 300.0}  # which serve every selection
    cheap = selected("rules", seconds={**shared, "rules": 29.0}, titles=("rules",))
    dear = selected("mae", seconds={**shared, "m3ae": 31.0}, titles=("m3ae",))
    (found,) = warnings([cheap, dear], [], TRAINED)
    assert found.startswith("selections.mae: m3ae took 31 s, longer than the 30 s of a training")


def test_the_mean_over_tasks_is_of_each_model_and_paired_by_seed():
    values = {"scenes": [(0.1, 0.2), (0.3, 0.5)], "words": [(0.3, 0.2), (0.5, 0.5)]}
    tasks = [
        TaskVerdict(
            name,
            metric,
            100,
            tuple(accuracy(selection, found) for selection, found in zip(("all", "dfn"), both, strict=True)),
            (Difference("dfn", "all", 0.25, (0.1, 0.4), (0.2, 0.3)),),
        )
        for (name, both), metric in zip(values.items(), ("acc1", "mean_recall@1"), strict=True)
    ]
    mean = over_tasks(tasks, "mean over 2 tasks")
    assert mean.of("all").values == pytest.approx((0.2, 0.2))
    assert mean.of("dfn").values == pytest.approx((0.4, 0.5))
    (difference,) = mean.differences
    reach = stats.t.ppf(0.975, 1) * 0.05
    assert difference.value == pytest.approx(0.25)
    assert difference.over_seeds == pytest.approx((0.25 - reach, 0.25 + reach))
    assert (difference.over_samples, difference.clear) == (None, False)
    assert (mean.metric, mean.num_samples) == ("main metric", 200)


def test_a_task_on_which_all_models_guess_is_named():
    facts = {"dataset": "d", "task": "classification", "num_samples": 100, "num_classes": 10, "not_embedded": 0}
    facts |= {"rejected": {}, "damaged": {}, "facts": {}, "outcomes": "o", "model": "m"}

    def result(low, metric="acc1", **changes):
        metrics = {metric: low + 0.05}
        return Result(**facts | changes, key="d", metric=metric, metrics=metrics, interval=(low, low + 0.1))

    (found,) = at_chance([[result(0.04)], [result(0.1)]])
    assert found.startswith("d: all models are at chance (acc1 of a guess among 10 classes is 0.1000), so nothing can")
    assert not list(at_chance([[result(0.04)], [result(0.11)]]))
    assert list(at_chance([[result(0.04)]] * 9 + [[result(0.11)]]))  # as luck would have it
    assert list(at_chance([[result(0.45, "acc5")]]))
    assert not list(at_chance([[result(0.0, "mean_recall@1", num_classes=None)]]))


def test_a_difference_is_bootstrapped_once(tmp_path, monkeypatch):
    facts = {"dataset": "d", "task": "classification", "metric": "acc1", "interval": None, "num_samples": 9}
    facts |= {"num_classes": 2, "not_embedded": 0, "rejected": {}, "damaged": {}, "facts": {}}
    one, two = (
        Result(key="d", model=model, metrics={"acc1": value}, outcomes=f"{model}.parquet", **facts)
        for model, value in (("one", 0.5), ("two", 0.25))
    )
    loaded = []

    def load(store, result):
        loaded.append(result.model)
        return lambda times: result.value if times is None else result.value * times[0]

    monkeypatch.setattr(verdicts, "load_metric", load)
    store = Store(str(tmp_path))
    first = verdicts._difference(store, 0, 20, (0, Contrast("a", "b", (one,), (two,))))
    assert first[1].over_samples[0] < 0.25 < first[1].over_samples[1]
    assert verdicts._difference(store, 0, 20, (0, Contrast("a", "b", (one,), (two,)))) == first
    assert loaded == ["one", "two"]
    for seed, draws, ours in ((1, 20, one), (0, 21, one), (0, 20, two)):
        verdicts._difference(store, seed, draws, (0, Contrast("a", "b", (ours,), (two,))))
    assert len(loaded) == 8
