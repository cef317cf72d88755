"""Histograms that parts can count without knowing the range."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.histogram import MAX_BINS, histogram, merge

NUMBERS = (st.floats(-1e9, 1e9) | st.floats(-1, 1) | st.just(0.25)).map(lambda value: round(value, 9))
VALUES = st.lists(st.tuples(NUMBERS, st.integers(0, 1)), min_size=1, max_size=40)


def count(pairs, finest=None):
    values, series = zip(*pairs, strict=True)
    return histogram(np.array(values, dtype=np.float64), np.array(series), 2, finest)


def test_by_hand():
    # 0, 1, 2, 63: bins of width 1 are the widest that are needed for 64 of them.
    counts = count([(0.0, 0), (1.0, 0), (1.5, 1), (63.0, 1)])
    assert (counts.exponent, counts.first, counts.total) == (0, 0, 4)
    assert counts.counts_SB[:, :2].tolist() == [[1, 1], [0, 1]]
    assert counts.edges[0] == 0.0
    assert counts.edges[-1] == 64.0


def test_nothing_and_what_is_no_number():
    none = histogram(np.zeros(0), np.zeros(0, int), 2)
    assert none.total == 0
    assert none.counts_SB.shape == (2, 0)
    some = count([(np.nan, 0), (np.inf, 1), (0.5, 1)])
    assert some.total == 1
    assert merge(none, some) is some
    assert merge(some, none) is some


@pytest.mark.parametrize("value", [0.0, -3.0, 1e300, 5e-324])
def test_one_value_has_one_bin_that_holds_it(value):
    counts = count([(value, 0)] * 3)
    assert counts.counts_SB.tolist() == [[3], [0]]
    assert counts.edges[0] <= value < counts.edges[1]


def test_tiny_values_count_as_nought():
    counts = count([(-5e-324, 0), (63.0, 0)])
    assert counts.first == 0
    assert counts.total == 2


def test_finest_keeps_whole_numbers_from_falling_between_bins():
    counts = count([(float(value), 0) for value in range(5)], finest=0)
    assert counts.counts_SB[0].tolist() == [1, 1, 1, 1, 1]


@given(VALUES)
def test_numpy_agrees(pairs):
    counts = count(pairs)
    assert counts.counts_SB.shape[1] <= MAX_BINS
    for series in (0, 1):
        values = [value for value, which in pairs if which == series]
        # The last bin of numpy holds its right edge too, which no value here can reach.
        expected, _ = np.histogram(values, bins=counts.edges)
        assert counts.counts_SB[series].tolist() == expected.tolist()


@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms())
def test_any_parts_in_any_order_give_the_same(parts, random):
    whole = count([pair for part in parts for pair in part])
    random.shuffle(parts)
    merged = reduce(merge, map(count, parts))
    assert (merged.exponent, merged.first) == (whole.exponent, whole.first)
    assert merged.counts_SB.tolist() == whole.counts_SB.tolist()
