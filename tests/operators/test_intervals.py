"""Intervals: coverage, pairing, determinism, and scipy as the oracle of the t interval."""

import numpy as np
import pytest
from scipy import stats

from operators.evaluation.intervals import Estimate, bootstrap, paired_bootstrap, paired_t_interval
from operators.evaluation.metrics import share


def metric(correct_N):
    return lambda times_N: share(correct_N, times_N)


def test_the_interval_of_a_share_is_about_that_of_a_binomial():
    correct_N = np.arange(400) < 120
    estimate = bootstrap(metric(correct_N), 400, np.random.default_rng(0), resamples=2000)
    assert estimate.value == 0.3
    reach = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert estimate.low == pytest.approx(0.3 - reach, abs=0.006)
    assert estimate.high == pytest.approx(0.3 + reach, abs=0.006)


def test_the_same_key_gives_the_same_interval_and_less_confidence_a_shorter_one():
    correct_N = np.arange(50) % 3 == 0
    first = bootstrap(metric(correct_N), 50, np.random.default_rng(7), resamples=200)
    assert bootstrap(metric(correct_N), 50, np.random.default_rng(7), resamples=200) == first
    half = bootstrap(metric(correct_N), 50, np.random.default_rng(7), resamples=200, confidence=0.5)
    assert first.low < half.low < half.high < first.high


def test_pairing_takes_out_what_is_common():
    rng = np.random.default_rng(0)
    hard_N = rng.random(1000) < 0.5
    theirs_N = ~hard_N
    ours_N = theirs_N | (rng.random(1000) < 0.04)
    estimate = paired_bootstrap(metric(ours_N), metric(theirs_N), 1000, np.random.default_rng(1), resamples=300)
    assert estimate.value == pytest.approx(ours_N.mean() - theirs_N.mean())
    assert estimate.clear_of_zero
    assert estimate.high - estimate.low < 0.025  # two independent shares of a half would differ by 0.12
    same = paired_bootstrap(metric(ours_N), metric(ours_N), 1000, np.random.default_rng(1), resamples=50)
    assert same == Estimate(0.0, 0.0, 0.0)
    assert not same.clear_of_zero


def test_one_sample_has_an_interval_without_width():
    assert bootstrap(metric(np.array([True])), 1, np.random.default_rng(0), resamples=5) == Estimate(1.0, 1.0, 1.0)


def test_the_t_interval_is_that_of_scipy():
    ours, theirs = [0.52, 0.55, 0.50, 0.58, 0.53], [0.50, 0.51, 0.50, 0.52, 0.49]
    estimate = paired_t_interval(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert estimate.value == pytest.approx(0.032)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_one_seed_says_nothing_about_others():
    estimate = paired_t_interval([0.6], [0.5])
    assert (estimate.low, estimate.high) == (-np.inf, np.inf)
    assert not estimate.clear_of_zero
