"""Exact sums against fractions."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from operators.limbs import BITS, join_limbs, sum_limbs

UNIT = 1 << BITS


def test_by_hand():
    # In float64 the small ones vanish beside the large one, or not, by the order.
    values = np.array([1.0, 2.0**-52, 2.0**-52, 2.0**-52, -1.0, 0.25])
    groups = np.array([0, 0, 0, 0, 2, 2])
    limbs_G2 = sum_limbs(values, groups, 3)
    assert limbs_G2.tolist() == [[2**26, 3], [0, 0], [-3 * 2**24, 0]]
    assert join_limbs(limbs_G2).tolist() == [1 + 3 * 2.0**-52, 0.0, -0.75]


@given(
    st.lists(st.tuples(st.integers(-UNIT, UNIT), st.integers(0, 3)), max_size=60),
    st.integers(0, 60),
    st.randoms(use_true_random=False),
)
def test_the_sum_is_the_nearest_to_the_exact_one_in_any_order_and_split(rows, cut, random):
    exact = [float(sum(Fraction(units, UNIT) for units, group in rows if group == g)) for g in range(4)]
    random.shuffle(rows)
    parts = [np.array(part, np.int64).reshape(-1, 2) for part in (rows[:cut], rows[cut:])]
    limbs_G2 = sum(sum_limbs(np.ldexp(part[:, 0].astype(float), -BITS), part[:, 1], 4) for part in parts)
    assert join_limbs(limbs_G2).tolist() == exact


def test_no_rows():
    assert join_limbs(sum_limbs(np.zeros(0), np.zeros(0, np.int64), 2)).tolist() == [0.0, 0.0]
    assert join_limbs(np.zeros((0, 2), np.int64)).tolist() == []
