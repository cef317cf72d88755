"""Intervals of kept shares, against every subset that could be drawn."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.thresholds import Subset, kept_share_interval, reaches


def at_least(rows, good, size, found):
    """The exact chance that `size` of `rows` rows, of which some are good, hold at least `found` good ones."""
    ways = sum(comb(good, k) * comb(rows - good, size - k) for k in range(found, size + 1))
    return Fraction(ways, comb(rows, size))


def test_ties_reach_the_threshold_and_missing_values_do_not():
    values = np.array([0.1, 0.2, 0.3, np.nan])
    assert reaches(values, 0.2, highest=True).tolist() == [False, True, True, False]
    assert reaches(values, 0.2, highest=False).tolist() == [True, True, False, False]


def test_by_hand():
    # One of two drawn from four reaches. With 1 good row: P(at least 1) = 1/2; with 3: P(at most 1) = 1/2, with 4: 0.
    assert kept_share_interval(Subset(2, 1, 1), confidence=0.5, rows=4) == (0.25, 0.75)
    # Of two from an endless source, one reaches: (1 - p)^2 = 3/4 and p^2 = 3/4.
    low, high = kept_share_interval(Subset(2, 1, 1), confidence=0.5)
    assert (low, high) == pytest.approx((1 - 0.75**0.5, 0.75**0.5))


def test_a_subset_that_is_everything_leaves_no_doubt():
    assert kept_share_interval(Subset(20, 3, 5), confidence=0.999, rows=20) == (0.15, 0.25)
    assert kept_share_interval(Subset(7, 7, 7), confidence=0.9, rows=7) == (1.0, 1.0)
    assert kept_share_interval(Subset(7, 7, 7), confidence=0.9)[1] == 1.0


@given(st.data(), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_ends_are_those_of_exact_fractions(data, confidence):
    rows = data.draw(st.integers(1, 40))
    size = data.draw(st.integers(1, rows))
    rank = data.draw(st.integers(1, size))
    reached = data.draw(st.integers(rank, size))
    tail = (1 - Fraction(repr(confidence))) / 2
    if any(at_least(rows, k, size, rank) == tail for k in range(rows + 1)):
        return  # floats may fall on either side
    low = min(k for k in range(rows + 1) if at_least(rows, k, size, rank) > tail)
    high = max(k for k in range(rows + 1) if 1 - at_least(rows, k, size, reached + 1) > tail)
    assert kept_share_interval(Subset(size, rank, reached), confidence, rows) == (low / rows, high / rows)


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=10),  # few values: many ties
    st.data(),
    st.sampled_from([0.5, 0.8, 0.95]),
)
@settings(max_examples=40)
def test_of_all_subsets_the_promised_share_has_the_truth_in_its_interval(values, data, confidence):
    size = data.draw(st.integers(1, len(values)))
    rank = data.draw(st.integers(1, size))
    held = 0
    for drawn in combinations(values, size):
        threshold = sorted(drawn, reverse=True)[rank - 1]
        reached = sum(value >= threshold for value in drawn)
        low, high = kept_share_interval(Subset(size, rank, reached), confidence, len(values))
        held += low <= sum(value >= threshold for value in values) / len(values) <= high
    assert held >= confidence * comb(len(values), size) - 1e-9


def test_the_interval_narrows_with_the_subset_and_the_pool():
    def width(size, rows):
        low, high = kept_share_interval(Subset(size, size * 3 // 20, size * 3 // 20), 0.99, rows)
        assert low < 0.15 < high
        return high - low

    assert width(100_000, None) == pytest.approx(2 * 2.576 * (0.15 * 0.85 / 100_000) ** 0.5, rel=0.01)
    assert width(1_000, None) > width(1_000, 10_000_000) > width(1_000, 2_000) > width(1_900, 2_000) > 0
