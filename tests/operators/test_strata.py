import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from operators.strata import stratum


def test_by_hand():
    values = np.array([0.0, 0.24, 0.25, 0.5, 0.99, 1.0, 0.7])
    low = np.array([0.0] * 6 + [0.7])
    high = np.array([1.0] * 6 + [0.7])
    assert stratum(values, low, high, 4).tolist() == [0, 0, 1, 2, 3, 3, 0]


def test_no_values():
    none = np.zeros(0)
    assert stratum(none, none, none, 20).tolist() == []


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(1, 30))
def test_ranges_are_equal_and_in_order(values, num_strata):
    values = np.sort(np.array(values))
    low, high = np.full(len(values), values[0]), np.full(len(values), values[-1])
    found = stratum(values, low, high, num_strata)
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    if values[-1] > values[0]:
        assert found[-1] == num_strata - 1
        width = (values[-1] - values[0]) / num_strata
        assert (np.abs(values - values[0] - (found + 0.5) * width) <= width * (0.5 + 1e-9)).all()
