"""Diversity of sets by the sizes of their clusters."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.diversity import diversity, has_collapsed, thinned_diversity


def test_by_hand():
    found = diversity(np.array([2, 1, 1, 0]))
    assert found.samples == 4
    assert found.entropy == pytest.approx(1.5 * math.log(2))  # one and a half bits
    assert found.effective == pytest.approx(2**1.5)
    assert found.largest_share == 0.5


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([5, 5, 5, 5], (20, math.log(4), 4.0, 0.25)), ([0, 7], (7, 0.0, 1.0, 1.0)), ([0, 0], (0, 0.0, 0.0, 0.0))],
)
def test_the_ends(sizes, expected):
    assert diversity(np.array(sizes)) == pytest.approx(expected)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any))
def test_bounds(sizes):
    found = diversity(np.array(sizes))
    assert 0 <= found.entropy <= math.log(len(sizes)) + 1e-9
    assert 1 - 1e-9 <= 1 / found.largest_share <= found.effective * (1 + 1e-9)  # min-entropy is the lower one


def test_collapse_is_judged_by_the_effective_number():
    even, half, fewer = (diversity(np.array(sizes)) for sizes in ([9, 9, 9, 9], [9, 9, 0, 0], [9, 8, 0, 0]))
    assert not has_collapsed(even, half, 0.49)
    assert has_collapsed(even, fewer, 0.5)
    assert has_collapsed(even, diversity(np.zeros(4, np.int64)), 0.5)


def test_a_small_set_is_held_against_as_many_at_random():
    many = np.full(100, 1000)
    rng = np.random.default_rng(0)
    drawn = thinned_diversity(many, 50, rng)
    assert drawn.samples == 50
    assert 30 < drawn.effective < 50  # all clusters are there, and 50 samples cannot show them
    few = rng.multivariate_hypergeometric(many, 50)
    assert has_collapsed(diversity(many), diversity(few), 0.5)
    assert not has_collapsed(drawn, diversity(few), 0.5)
    assert thinned_diversity(many, many.sum(), rng) == pytest.approx(diversity(many))
    assert thinned_diversity(many, 0, rng) == diversity(np.zeros(100, np.int64))
    assert thinned_diversity(np.full(4, 10**9), 10**6, rng).effective == pytest.approx(4, abs=1e-3)
