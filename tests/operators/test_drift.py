"""Drift: by hand, by definition, and how often chance alone is taken for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from operators.drift import TAIL, Measured, ks_distance, rate_shift, tail_bins, tail_share, total_variation

counts = st.lists(st.integers(0, 1000), min_size=3, max_size=8)


def test_rate_shift_by_hand():
    found = rate_shift(6, 100, 20, 1000)
    assert found.value == pytest.approx(0.04)
    pooled = 26 / 1100
    assert found.chance == pytest.approx(2.3263 * (pooled * (1 - pooled) * (1 / 100 + 1 / 1000)) ** 0.5, rel=1e-4)
    assert rate_shift(0, 5, 0, 7) == Measured(0.0, 0.0)
    assert rate_shift(0, 10, 5, 10).value == -0.5


def test_distances_by_hand():
    new, fit = np.array([5, 5, 0]), np.array([0, 10, 10])
    assert ks_distance(new, fit).value == pytest.approx(0.5)  # after the first bin: 0.5 against 0, then 1 against 0.5
    assert total_variation(new, fit).value == pytest.approx(0.5)  # (0.5 + 0 + 0.5) / 2
    assert total_variation(new, np.array([0, 10, 10])).chance > 0.8  # ten rows say next to nothing


def test_the_tail_holds_at_most_its_share():
    assert tail_bins(np.array([1, 0, 1, 198])) == 3
    assert tail_bins(np.array([3, 0, 297])) == 2
    assert tail_bins(np.array([4, 0, 296])) == 0
    assert tail_bins(np.array([50])) == 0
    found = tail_share(5, 100)
    assert found.value == 0.05
    assert TAIL < found.chance < 0.05


def test_only_what_chance_does_not_explain_exceeds():
    assert Measured(0.2, 0.1).exceeds(0.15)
    assert not Measured(0.2, 0.3).exceeds(0.15)
    assert not Measured(0.2, 0.1).exceeds(0.25)
    assert not Measured(0.2, 0.1).exceeds(None)


@given(counts, counts.map(lambda values: [value + 1 for value in values]), st.integers(1, 9))
def test_distances_are_what_they_are_by_definition(new, fit, scale):
    size = min(len(new), len(fit))
    new_B, fit_B = np.array(new[:size]), np.array(fit[:size])
    if not new_B.sum():
        return
    ours, theirs = new_B / new_B.sum(), fit_B / fit_B.sum()
    ks, tv = ks_distance(new_B, fit_B), total_variation(new_B, fit_B)
    assert ks.value == pytest.approx(np.abs(np.cumsum(ours) - np.cumsum(theirs)).max(), abs=1e-12)
    assert tv.value == pytest.approx(np.abs(ours - theirs).sum() / 2, abs=1e-12)
    assert 0 <= ks.value <= tv.value + 1e-12 <= 1 + 1e-12
    assert ks_distance(scale * new_B, fit_B).value == pytest.approx(ks.value)
    assert total_variation(scale * new_B, fit_B).chance <= tv.chance


def test_ks_is_the_statistic_of_scipy_where_every_value_has_its_bin():
    rng = np.random.default_rng(0)
    new_N, fit_M = rng.integers(0, 40, 300), rng.integers(5, 45, 500)
    found = ks_distance(np.bincount(new_N, minlength=45), np.bincount(fit_M, minlength=45))
    assert found.value == pytest.approx(stats.ks_2samp(new_N, fit_M).statistic)


def test_without_drift_chance_is_exceeded_in_few_cases():
    """200 pairs of samples of one distribution each: one case in a hundred is to be expected, at most."""
    rng = np.random.default_rng(1)
    shares_K = rng.dirichlet(np.full(20, 2.0))
    over = {"rate": 0, "ks": 0, "tv": 0}
    for _ in range(200):
        fit_K, new_K = rng.multinomial(2000, shares_K), rng.multinomial(300, shares_K)
        rate = rate_shift(int(rng.binomial(300, 0.05)), 300, int(rng.binomial(2000, 0.05)), 2000)
        found = {"rate": rate, "ks": ks_distance(new_K, fit_K), "tv": total_variation(new_K, fit_K)}
        over = {name: over[name] + (found[name].value > found[name].chance) for name in over}
    assert over["ks"] <= 4
    assert over["tv"] == 0
    assert over["rate"] <= 8
    moved_K = np.roll(shares_K, 3)
    drifted = total_variation(rng.multinomial(300, moved_K), rng.multinomial(2000, shares_K))
    assert drifted.value > drifted.chance
