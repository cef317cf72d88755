"""Legend: N rows, K columns, D dimensions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from operators import certified, screen
from operators.certified import assign, nearest
from operators.exact import ordered_sum, round_to_grid
from operators.screen import as_tensor, error_bound, exact_dots, measure_rows, prepare_columns


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def score_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Both kinds of screen, whatever this processor would choose."""
    monkeypatch.setattr(screen, "score_dtype", lambda device_type: request.param)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that a small case has many of them, in both directions."""
    monkeypatch.setattr(screen, "BLOCK_ROWS", 16)
    monkeypatch.setattr(screen, "BLOCK_COLUMNS", 24)


def unit(vectors_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    length_N = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float64] = vectors_ND / length_N
    return unit_ND


def cone(num: int, dims: int, seed: int, spread: float = 1.0) -> NDArray[np.float64]:
    """Unit vectors around one direction; the smaller the spread, the closer the calls."""
    generator = np.random.default_rng(seed)
    centre_D = np.random.default_rng(99).standard_normal(dims)
    return unit(centre_D + spread * generator.standard_normal((num, dims)))


def naive(
    x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64], offset_K: NDArray[np.float64] | float = 0.0
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """All products in float64, where they are exact; argmax takes the lowest id among equals."""
    similarity_NK = x_ND.astype(np.float64) @ centroids_KD.T + offset_K
    return similarity_NK.argmax(axis=1), similarity_NK.max(axis=1).clip(-1, 1)


def test_hand_computed() -> None:
    x_ND = np.array([[1, 0], [0, 1], [-1, 0], [0.5, 0.5]], dtype=np.float16)
    centroids_KD = np.array([[0.0, 1.0], [1.0, 0.0], [-0.5, -0.5]])
    cluster_N, similarity_N = assign(x_ND, centroids_KD)
    assert cluster_N.dtype == np.int32
    assert cluster_N.tolist() == [1, 0, 2, 0]
    assert similarity_N.tolist() == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("spread", [1.0, 0.05, 0.001])
@pytest.mark.parametrize(
    ("rows", "clusters", "dims"), [(300, 100, 64), (50, 1000, 32), (100, 7, 3), (1, 2, 1), (9, 25, 512)]
)
def test_equals_all_products_in_float64(
    score_dtype: torch.dtype, small_tiles: None, rows: int, clusters: int, dims: int, spread: float
) -> None:
    x_ND = cone(rows, dims, seed=1, spread=spread).astype(np.float16)
    centroids_KD = round_to_grid(cone(clusters, dims, seed=2, spread=spread))
    cluster_N, similarity_N = assign(x_ND, centroids_KD, threads=2)
    expected_N, expected_similarity_N = naive(x_ND, centroids_KD)
    np.testing.assert_array_equal(cluster_N, expected_N)
    np.testing.assert_array_equal(similarity_N, expected_similarity_N)


@pytest.mark.parametrize("spread", [1.0, 0.05, 0.001])
@pytest.mark.parametrize(
    ("rows", "clusters", "dims"), [(300, 100, 64), (50, 1000, 32), (100, 7, 3), (1, 2, 1), (9, 25, 512)]
)
def test_offsets_equal_all_products_in_float64(
    score_dtype: torch.dtype, small_tiles: None, rows: int, clusters: int, dims: int, spread: float
) -> None:
    x_ND = cone(rows, dims, seed=1, spread=spread).astype(np.float16)
    x_ND[: rows // 10] = 0
    generator = np.random.default_rng(3)
    centroids_KD = round_to_grid(cone(clusters, dims, seed=2, spread=spread) * generator.uniform(0.5, 1, (clusters, 1)))
    offset_K = round_to_grid(0.5 - (centroids_KD**2).sum(axis=1) / 2 + generator.normal(0, 1e-4, clusters), 52)
    cluster_N, similarity_N = assign(x_ND, centroids_KD, offset_K, threads=2)
    expected_N, expected_similarity_N = naive(x_ND, centroids_KD, offset_K)
    np.testing.assert_array_equal(cluster_N, expected_N)
    np.testing.assert_array_equal(similarity_N, expected_similarity_N)


def test_the_last_bit_of_an_offset_decides(score_dtype: torch.dtype) -> None:
    x_ND = cone(3, 8, seed=18).astype(np.float16)
    centroids_KD = np.tile(round_to_grid(cone(1, 8, seed=19) / 2), (20, 1))
    offset_K = np.full(20, 0.3)
    offset_K[:] = round_to_grid(offset_K, 52)
    offset_K[13] += 2.0**-52
    assert assign(x_ND, centroids_KD, offset_K)[0].tolist() == [13] * 3


def test_full_tiles_equal_all_products_in_float64() -> None:
    x_ND = cone(5000, 96, seed=1).astype(np.float16)
    centroids_KD = round_to_grid(cone(1500, 96, seed=2))
    expected_N, _ = naive(x_ND, centroids_KD)
    for threads in (1, 2, 4):
        np.testing.assert_array_equal(assign(x_ND, centroids_KD, threads=threads)[0], expected_N)


def test_a_difference_of_one_grid_step_decides(score_dtype: torch.dtype) -> None:
    centroids_KD = np.tile(round_to_grid(cone(1, 64, seed=3)), (40, 1))
    centroids_KD[31, 5] += 2.0**-28
    x_ND = np.zeros((2, 64), dtype=np.float16)
    x_ND[0, 5], x_ND[1, 5] = 2.0**-24, -(2.0**-24)
    assert assign(x_ND, centroids_KD)[0].tolist() == [31, 0]


def test_ties_go_to_the_lowest_cluster(score_dtype: torch.dtype, small_tiles: None) -> None:
    x_ND = cone(30, 16, seed=4).astype(np.float16)
    centroids_KD = np.tile(round_to_grid(cone(9, 16, seed=5)), (7, 1))
    cluster_N, _ = assign(x_ND, centroids_KD)
    np.testing.assert_array_equal(cluster_N, naive(x_ND, centroids_KD[:9])[0])


def test_zero_rows_identical_rows_no_rows_one_cluster(score_dtype: torch.dtype) -> None:
    x_ND = np.tile(cone(1, 16, seed=6), (20, 1)).astype(np.float16)
    x_ND[5:10] = 0
    centroids_KD = round_to_grid(np.concatenate([-cone(1, 16, seed=6), cone(30, 16, seed=7)]))
    cluster_N, similarity_N = assign(x_ND, centroids_KD)
    best = naive(x_ND[:1], centroids_KD)[0][0]
    assert best > 0
    assert cluster_N.tolist() == [best] * 5 + [0] * 5 + [best] * 10
    assert similarity_N[5:10].tolist() == [0.0] * 5
    assert assign(x_ND[:0], centroids_KD)[0].shape == (0,)
    cluster_N, similarity_N = assign(x_ND, centroids_KD[:1])
    assert cluster_N.tolist() == [0] * 20
    np.testing.assert_array_equal(similarity_N, naive(x_ND, centroids_KD[:1])[1])


def test_many_candidates_are_decided_in_smaller_blocks(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certified, "_MOST_PAIRS", 60)
    x_ND = cone(70, 16, seed=16).astype(np.float16)
    centroids_KD = round_to_grid(cone(100, 16, seed=17, spread=1e-6))
    np.testing.assert_array_equal(assign(x_ND, centroids_KD)[0], naive(x_ND, centroids_KD)[0])


def test_all_scores_negative(score_dtype: torch.dtype) -> None:
    x_ND = cone(50, 8, seed=8, spread=0.1).astype(np.float16)
    centroids_KD = round_to_grid(-cone(12, 8, seed=9, spread=0.1))
    np.testing.assert_array_equal(assign(x_ND, centroids_KD)[0], naive(x_ND, centroids_KD)[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.sampled_from([2, 16, 4096]))
def test_any_coarse_vectors_with_many_ties(seed: int, rows: int, clusters: int, dims: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    x_ND = (generator.integers(-levels, levels + 1, (rows, dims)) / levels / 4).astype(np.float16)
    centroids_KD = round_to_grid(generator.integers(-levels, levels + 1, (clusters, dims)) / levels / 4)
    cluster_N, similarity_N = assign(x_ND, centroids_KD)
    expected_N, expected_similarity_N = naive(x_ND, centroids_KD)
    np.testing.assert_array_equal(cluster_N, expected_N)
    np.testing.assert_array_equal(similarity_N, expected_similarity_N)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("offset", [None, 0.01, 0.4])
@pytest.mark.parametrize(("rows", "clusters", "dims"), [(1, 1, 1), (3, 8, 2), (40, 64, 17), (400, 512, 768)])
def test_no_score_is_further_off_than_the_bound(
    score_dtype: torch.dtype, rows: int, clusters: int, dims: int, offset: float | None, centre: bool
) -> None:
    x_ND = cone(rows, dims, seed=10).astype(np.float16)
    centroids_KD = round_to_grid(cone(clusters, dims, seed=11))
    offset_K = None if offset is None else round_to_grid(np.random.default_rng(12).uniform(0, offset, clusters), 52)
    operands, columns = measure_rows(x_ND), prepare_columns(centroids_KD, offset_K, centre=centre)
    scratch = certified._Scratch(operands, columns)
    (block_CD,) = columns.blocks_CD
    score_NC = scratch.multiply(scratch.round(operands.x_ND), block_CD).view(score_dtype).double().numpy()
    mean_D = round_to_grid(centroids_KD.mean(axis=0)) if centre else 0.0
    shifted_K = 0.0 if offset_K is None else offset_K - round_to_grid(offset_K.mean())
    off_NK = np.abs(score_NC[:, :clusters] - x_ND.astype(np.float64) @ (centroids_KD - mean_D).T - shifted_K)
    rounding_NK = np.abs(score_NC[:, :clusters]) * (2.0**-8 if score_dtype == torch.bfloat16 else 0)
    assert (off_NK <= error_bound(operands, columns).numpy()[:, None] + rounding_NK).all()


def test_residuals_are_measured() -> None:
    x_ND = np.array([[0.5, 0.25], [0.5 + 2**-11, 0.0], [0.0, 0.0]], dtype=np.float16)
    rows = measure_rows(x_ND)
    assert rows.residual_N.tolist() == [0.0, 2.0**-11, 0.0]
    np.testing.assert_allclose(rows.norm_N.numpy(), [np.hypot(0.5, 0.25), 0.5, 0.0], rtol=1e-6)


def test_exact_dots_are_exact() -> None:
    x_ND = cone(20, 40, seed=12).astype(np.float16)
    columns_KD = round_to_grid(cone(5, 40, seed=13))
    row_P, column_P = torch.tensor([0, 3, 3, 19]), torch.tensor([4, 2, 0, 1])
    dots_P = exact_dots(as_tensor(x_ND, "cpu"), as_tensor(columns_KD, "cpu"), row_P, column_P)
    for row, column, dot in zip(row_P, column_P, dots_P.tolist(), strict=True):
        terms = zip(x_ND[row].tolist(), columns_KD[column].tolist(), strict=True)
        assert Fraction(dot) == sum(Fraction(x) * Fraction(c) for x, c in terms)


def test_read_only_rows_are_accepted_and_torch_threads_restored() -> None:
    x_ND = cone(3000, 8, seed=14).astype(np.float16)
    x_ND.setflags(write=False)
    before = torch.get_num_threads()
    nearest(measure_rows(x_ND, threads=2), prepare_columns(round_to_grid(cone(3, 8, seed=15))), threads=2)
    assert torch.get_num_threads() == before


def test_round_to_grid() -> None:
    step = 2.0**-28
    values = np.array([0.4, 0.6, 1.5, 2.5, -1.0, 2.0**28]) * step
    assert (round_to_grid(values) / step).tolist() == [0, 1, 2, 2, -1, 2**28]
    assert round_to_grid(np.array([0.3]), bits=1).tolist() == [0.5]


def test_ordered_sum() -> None:
    values_ND = np.random.default_rng(0).standard_normal((4, 37))
    np.testing.assert_allclose(ordered_sum(values_ND), values_ND.sum(axis=1))
    assert ordered_sum(np.array([[1e16, 1.0, -1e16]])).tolist() == [(1e16 - 1e16) + 1.0]
    assert ordered_sum(np.zeros((2, 0))).tolist() == [0, 0]
    assert ordered_sum(np.array([[3.0]])).tolist() == [3]
