"""Metrics: by hand, against scikit-learn, and with multiplicities against samples that are really repeated."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from operators.evaluation.metrics import macro_f1, mean_per_class_recall, share, worst_group
from operators.evaluation.outcomes import Classified, Retrieved, all_metrics

#         0: 2 of 3 found    1: 1 of 1    2: 0 of 2
LABEL = np.array([0, 0, 0, 1, 2, 2])
GUESS = np.array([0, 0, 1, 1, 3, -1])


def test_by_hand():
    assert share(LABEL == GUESS) == pytest.approx(3 / 6)
    assert mean_per_class_recall(LABEL, GUESS) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert macro_f1(LABEL, GUESS) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert worst_group(LABEL == GUESS, np.array([5, 5, 0, 0, 0, 0])) == pytest.approx(1 / 4)


def test_no_sample_at_all_is_nan():
    nothing = np.array([], np.int64)
    assert math.isnan(share(nothing.astype(bool)))
    assert math.isnan(mean_per_class_recall(nothing, nothing))
    assert math.isnan(macro_f1(nothing, nothing))
    assert math.isnan(worst_group(nothing.astype(bool), nothing))
    assert math.isnan(share(np.array([True]), np.array([0])))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 1000))
def test_multiplicities_are_repeated_samples_as_scikit_learn_counts_them(count, classes, seed):
    rng = np.random.default_rng(seed)
    label_N, guess_N = rng.integers(0, classes, count), rng.integers(0, classes, count)
    times_N = np.bincount(rng.integers(0, count, count), minlength=count)
    label_R, guess_R = np.repeat(label_N, times_N), np.repeat(guess_N, times_N)
    with warnings.catch_warnings(action="ignore"):  # predictions of classes that are never true
        balanced = balanced_accuracy_score(label_R, guess_R)
    f1 = f1_score(label_R, guess_R, average="macro", labels=np.unique(label_R), zero_division=0)
    assert mean_per_class_recall(label_N, guess_N, times_N) == pytest.approx(balanced)
    assert macro_f1(label_N, guess_N, times_N) == pytest.approx(f1)
    hits_N = label_N == guess_N
    assert share(hits_N, times_N) == pytest.approx(np.repeat(hits_N, times_N).mean())
    group_N = label_N % 2
    expected = worst_group(np.repeat(hits_N, times_N), np.repeat(group_N, times_N))
    assert worst_group(hits_N, group_N, times_N) == pytest.approx(expected)


def test_names_of_a_classifier():
    ranks = np.array([0, 1, 4, 5])
    few = Classified(np.zeros(4, int), np.zeros(4, int), ranks, num_classes=4)
    assert few.names == ("acc1", "mean_per_class_recall", "F1-macro_all")
    many = Classified(np.zeros(4, int), np.array([0, 1, 1, 1]), ranks, num_classes=9, group_N=np.array([0, 0, 1, 1]))
    assert all_metrics(many, "acc_worst_region") == {
        "acc1": 1 / 4,
        "acc5": 3 / 4,
        "mean_per_class_recall": 1 / 4,
        "F1-macro_all": 2 / 5,
        "acc_wg": 0.0,
        "acc_top5_wg": 1 / 2,
        "acc_worst_region": 0.0,
    }
    with pytest.raises(KeyError):
        many.measure("accuracy")


def test_recalls_are_named_by_what_is_retrieved_and_drawn_by_image():
    """Of three images, the first with two captions, and the last not embedded: never found among so few either."""
    found = Retrieved(np.array([0, 3, 4]), np.array([0, 1, 2, 3]), image_M=np.array([0, 0, 1, 2]))
    assert found.not_embedded == 1
    assert all_metrics(found, "mean_recall@1") == {
        "image_retrieval_recall@1": 1 / 4,
        "image_retrieval_recall@5": 3 / 4,
        "image_retrieval_recall@10": 3 / 4,
        "text_retrieval_recall@1": pytest.approx(1 / 3),
        "text_retrieval_recall@5": pytest.approx(2 / 3),
        "text_retrieval_recall@10": pytest.approx(2 / 3),
        "mean_recall@1": pytest.approx((1 / 4 + 1 / 3) / 2),
    }
    assert found.measure("mean_recall@1", np.array([2, 0, 0])) == pytest.approx((1 / 2 + 1) / 2)
    assert found.measure("text_retrieval_recall@10", np.array([0, 2, 0])) == 1.0
    with pytest.raises(KeyError):
        found.measure("acc1")


def test_what_is_not_embedded_is_never_among_the_best_of_few_classes():
    few = Classified(np.array([0, 1]), np.array([0, -1]), np.array([1, 2]), num_classes=2, group_N=np.array([0, 1]))
    assert few.not_embedded == 1
    assert all_metrics(few, "acc5")["acc5"] == 1 / 2
    assert few.measure("acc_top5_wg") == 0.0
