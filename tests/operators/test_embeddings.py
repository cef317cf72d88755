from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from operators.embeddings import cosine_pairs, to_stored, to_unit_float16


def unit_rows(num_rows, dim, seed=0):
    return to_unit_float16(np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32))[0]


def exact_dot(a, b):
    return sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)), Fraction(0))


def test_hand_computed_rows():
    unit, valid = to_unit_float16(np.array([[3, 4], [0, -2], [0, 0], [1, np.nan], [np.inf, 1]], dtype=np.float32))
    np.testing.assert_array_equal(valid, [True, True, False, False, False])
    expected = np.array([[0.6, 0.8], [0, -1], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(unit, expected.astype(np.float16))
    assert unit.dtype == np.float16


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1.0, 1e38, 1e300])
def test_neither_overflow_nor_underflow(scale):
    unit, valid = to_unit_float16(np.array([[3.0, 4.0]]) * scale)
    np.testing.assert_array_equal(unit, np.array([[0.6, 0.8]], dtype=np.float16))
    assert valid.all()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)])
def test_no_rows_or_no_dimensions(shape):
    unit, valid = to_unit_float16(np.zeros(shape, dtype=np.float32))
    assert unit.shape == shape
    assert not valid.any()


def test_the_input_is_left_alone():
    x = np.array([[3.0, 4.0]])
    to_unit_float16(x)
    np.testing.assert_array_equal(x, [[3.0, 4.0]])


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1e3, 1e3, width=32)))
def test_rows_are_unit_and_do_not_depend_on_each_other(x):
    unit, valid = to_unit_float16(x)
    np.testing.assert_array_equal(valid, np.abs(x).max(axis=1) > 0)
    lengths = np.linalg.norm(unit.astype(np.float64), axis=1)
    assert np.abs(lengths[valid] - 1).max(initial=0) < 5e-4
    assert not lengths[~valid].any()
    for row, alone in zip(x, unit, strict=True):
        np.testing.assert_array_equal(to_unit_float16(row[None])[0][0], alone)


@given(
    arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(1, 40)), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_what_was_stored_is_read_as_it_was(x):
    unit, valid = to_unit_float16(x)
    again, still_valid = to_stored(unit)
    np.testing.assert_array_equal(again, unit)
    np.testing.assert_array_equal(still_valid, valid)


def test_rows_of_other_lengths_are_scaled():
    x = np.array([[3, 4], [0.6, 0.8], [0, 0], [np.inf, 1], [np.nan, 0], [0.51, 0.86]], dtype=np.float16)
    unit, valid = to_stored(x)
    np.testing.assert_array_equal(valid, [True, True, False, False, False, True])
    np.testing.assert_array_equal(unit[0], np.array([0.6, 0.8], dtype=np.float16))
    np.testing.assert_array_equal(unit[1], x[1])
    assert not unit[2:5].any()
    for column in range(5):  # a row keeps its value whatever stands beside it
        np.testing.assert_array_equal(to_stored(x[column : column + 1])[0][0], unit[column])


def test_other_floats_are_scaled_once():
    x = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    np.testing.assert_array_equal(to_stored(x)[0], to_unit_float16(x)[0])


def test_cosine_of_hand_computed_pairs():
    a = np.array([[1, 0], [0.5, 0.5], [1, 0], [1, 1]], dtype=np.float16)
    b = np.array([[0, 1], [0.5, 0.25], [-1, 0], [1, 1]], dtype=np.float16)
    np.testing.assert_array_equal(cosine_pairs(a, b), [0.0, 0.375, -1.0, 1.0])


def test_cosine_is_exact_and_the_same_in_any_order():
    a, b = unit_rows(20, 768), unit_rows(20, 768, seed=1)
    cosine = cosine_pairs(a, b)
    order = np.random.default_rng(2).permutation(768)
    np.testing.assert_array_equal(cosine, cosine_pairs(a[:, order], b[:, order]))
    np.testing.assert_array_equal(cosine, np.diag(a.astype(np.float64) @ b.astype(np.float64).T))
    for row in range(20):
        assert Fraction(float(cosine[row])) == exact_dot(a[row], b[row])


@given(arrays(np.float16, (2, 12), elements=st.floats(-0.25, 0.25, width=16)))
def test_cosine_is_exact_down_to_subnormals(pair):
    a, b = pair
    assert Fraction(float(cosine_pairs(a[None], b[None])[0])) == exact_dot(a, b)


def test_cosine_of_a_row_with_itself_is_clipped_to_one():
    rows = unit_rows(200, 64)
    cosine = cosine_pairs(rows, rows)
    assert cosine.max() == 1.0
    assert cosine.min() > 1 - 1e-3


def test_cosine_of_nothing():
    assert cosine_pairs(unit_rows(0, 8), unit_rows(0, 8)).shape == (0,)
