"""Five numbers and effective numbers, by hand and by their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.evenness import FiveNumbers, effective_number, five_numbers

weights = st.lists(st.integers(0, 10**6), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7], (7, 7, 7, 7, 7)),
        ([4, 1, 3, 2], (1, 1, 2, 3, 4)),
        ([5, 1, 4, 2, 3], (1, 2, 3, 4, 5)),
        ([0.5, 0.5, 1.0], (0.5, 0.5, 0.5, 1.0, 1.0)),
    ],
)
def test_five_numbers(values, expected):
    assert five_numbers(np.array(values)) == FiveNumbers(*expected)


@given(weights)
def test_each_of_the_five_is_a_value_and_splits_them(values):
    found = five_numbers(np.array(values))
    assert set(found) <= set(values)
    for number, share in zip(found, (0, 0.25, 0.5, 0.75, 1), strict=True):
        assert sum(value <= number for value in values) >= share * len(values)
        assert sum(value < number for value in values) <= share * len(values)


def test_effective_number_by_hand():
    assert effective_number(np.array([5, 5, 5, 5])) == pytest.approx(4)
    assert effective_number(np.array([9, 0, 0])) == 1
    assert effective_number(np.array([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)
    assert effective_number(np.array([], dtype=int)) == effective_number(np.zeros(3)) == 0


@given(weights)
def test_effective_number_lies_between_one_and_all_whatever_the_unit(values):
    found, filled = effective_number(np.array(values)), sum(value > 0 for value in values)
    assert min(filled, 1) - 1e-9 <= found <= filled + 1e-9
    assert found == pytest.approx(effective_number(3.0 * np.array(values)))
    shares = [value / sum(values) for value in values if value]
    assert found == pytest.approx(math.prod(share**-share for share in shares) if shares else 0)
