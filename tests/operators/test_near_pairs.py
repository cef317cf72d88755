"""Near pairs against all products in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import near_pairs as module
from operators.embeddings import to_unit_float16
from operators.near_pairs import exact_pairs, near_pairs, screen, thresholds

EPSILONS = np.array([0.0005, 0.004, 0.03, 0.3])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "TILE", 32)


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request, monkeypatch):
    """Screens in float32 and in bfloat16, whatever this processor is best at."""
    monkeypatch.setattr(module, "score_dtype", lambda device_type: request.param)


def rows(count: int, dims: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x_ND = rng.standard_normal((count, dims))
    x_ND[count // 2 :] = x_ND[: count - count // 2] + 10.0 ** rng.uniform(-4, 0, (count - count // 2, 1)) * (
        rng.standard_normal((count - count // 2, dims))
    )
    return to_unit_float16(x_ND)[0]


def levels(x_ND, y_ND, threshold_E, **options) -> np.ndarray:
    """The level of each pair, as the tiles tell it; the number of epsilons where a pair is not near."""
    found = np.full((len(x_ND), len(y_ND)), len(threshold_E))
    for pairs in near_pairs(screen(x_ND), screen(y_ND), threshold_E, **options):
        assert (found[pairs.row_P, pairs.column_P] == len(threshold_E)).all()
        found[pairs.row_P, pairs.column_P] = pairs.level_P
        order = np.lexsort((pairs.column_P, pairs.row_P))
        assert (order == np.arange(len(order))).all()
    return found


def by_hand(x_ND, y_ND, threshold_E) -> np.ndarray:
    dot_NM = x_ND.astype(np.float64) @ y_ND.astype(np.float64).T
    return (dot_NM[:, :, None] <= threshold_E).sum(axis=2)


def test_three_rows():
    x_ND = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float16)
    found = levels(x_ND, x_ND, thresholds(np.array([0.1, 0.25])))
    np.testing.assert_array_equal(found, [[0, 1, 2], [1, 0, 2], [2, 2, 0]])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("count", "dims"), [(1, 4), (33, 7), (150, 40)])
def test_every_pair_has_its_level(dtype, count, dims, threads):
    x_ND, y_ND = rows(count, dims), rows(count + 5, dims)
    threshold_E = thresholds(EPSILONS)
    np.testing.assert_array_equal(levels(x_ND, y_ND, threshold_E, threads=threads), by_hand(x_ND, y_ND, threshold_E))


def test_rows_can_be_held_to_the_first_columns(dtype):
    x_ND, threshold_E = rows(100, 9), thresholds(EPSILONS)
    columns_of = np.sort(np.random.default_rng(1).integers(0, 101, 100))
    expected = by_hand(x_ND, x_ND, threshold_E)
    expected[np.arange(100) >= columns_of[:, None]] = len(threshold_E)
    np.testing.assert_array_equal(levels(x_ND, x_ND, threshold_E, columns_of=columns_of), expected)


def test_rows_that_are_all_alike(dtype):
    x_ND = np.tile(rows(1, 16), (70, 1))
    assert (levels(x_ND, x_ND, thresholds(EPSILONS)) == 0).all()


def test_a_zero_row_is_near_nothing(dtype):
    x_ND = np.zeros((3, 8), np.float16)
    assert (levels(x_ND, x_ND, thresholds(EPSILONS)) == len(EPSILONS)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-1e-9, 1e-9))
def test_a_pair_at_the_threshold_is_judged_exactly(seed, nudge):
    x_ND = rows(40, 12, seed)
    dot_NM = x_ND.astype(np.float64) @ x_ND.astype(np.float64).T
    close = np.unique(1.0 - dot_NM[(dot_NM < 1 - 6e-4) & (dot_NM > 0.6)])
    if not len(close):
        return
    epsilons = np.array([close[len(close) // 2] + nudge])
    threshold_E = thresholds(epsilons)
    np.testing.assert_array_equal(levels(x_ND, x_ND, threshold_E), by_hand(x_ND, x_ND, threshold_E))


def test_exact_pairs_are_clipped_dot_products():
    x_ND = rows(50, 11)
    row_P, column_P = np.random.default_rng(2).integers(0, 50, (2, 90))
    dot_NM = x_ND.astype(np.float64) @ x_ND.astype(np.float64).T
    found = exact_pairs(screen(x_ND), screen(x_ND), row_P, column_P)
    np.testing.assert_array_equal(found, dot_NM[row_P, column_P].clip(-1, 1))


@pytest.mark.parametrize("epsilons", [[0.0001, 0.1], [0.1, 0.1], [0.2, 0.1], [0.6]])
def test_epsilons_are_ascending_and_in_range(epsilons):
    with pytest.raises(AssertionError):
        thresholds(np.array(epsilons))
