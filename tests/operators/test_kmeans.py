"""Legend: N rows, K clusters, D dimensions."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from operators.certified import assign
from operators.exact import round_to_grid
from operators.kmeans import (
    Metric,
    Part,
    Search,
    Sums,
    exact_search,
    first_centroids,
    inertia,
    initial_keys,
    lowest_keys,
    merge_sums,
    offsets,
    partial_sums,
    repair_empty,
    summed_similarity,
    unit_rows,
    update_centroids,
)
from operators.two_level import group_search


def groups(num_rows: int, num_groups: int, dims: int, seed: int = 0) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Unit rows around well separated directions, and which direction each came from."""
    generator = np.random.default_rng(seed)
    directions_GD = np.linalg.qr(generator.standard_normal((dims, dims)))[0][:num_groups]
    group_N = generator.integers(0, num_groups, num_rows)
    x_ND = directions_GD[group_N] + 0.05 * generator.standard_normal((num_rows, dims))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16), group_N


def test_sums_by_hand() -> None:
    x_ND = np.array([[1, 0], [0, 1], [0.5, 0.25]], dtype=np.float16)
    sums_KD, counts_K = partial_sums(x_ND, np.array([2, 0, 2], dtype=np.int32), 3)
    assert sums_KD.tolist() == [[0, 1], [0, 0], [1.5, 0.25]]
    assert counts_K.tolist() == [1, 0, 2]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("clusters", [1, 3, 50])
def test_sums_equal_a_plain_loop_bit_for_bit(clusters: int, threads: int) -> None:
    x_ND, _ = groups(1500, 4, 24)
    cluster_N = np.random.default_rng(1).integers(0, clusters, len(x_ND)).astype(np.int32)
    expected_KD = np.zeros((clusters, 24))
    np.add.at(expected_KD, cluster_N[::-1], x_ND[::-1].astype(np.float64))
    sums_KD, counts_K = partial_sums(x_ND, cluster_N, clusters, threads=threads)
    np.testing.assert_array_equal(sums_KD, expected_KD)
    np.testing.assert_array_equal(counts_K, np.bincount(cluster_N, minlength=clusters))


def test_sums_of_no_rows() -> None:
    sums_KD, counts_K = partial_sums(np.zeros((0, 3), dtype=np.float16), np.zeros(0, dtype=np.int32), 2)
    assert sums_KD.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert counts_K.tolist() == [0, 0]


def test_merged_parts_equal_the_whole() -> None:
    x_ND, group_N = groups(500, 5, 16)
    cluster_N = group_N.astype(np.int32)
    whole = partial_sums(x_ND, cluster_N, 5)
    parts = [partial_sums(x_ND[rows], cluster_N[rows], 5) for rows in (slice(0, 1), slice(1, 333), slice(333, 500))]
    for order in (parts, parts[::-1]):
        merged = merge_sums(order)
        np.testing.assert_array_equal(merged[0], whole[0])
        np.testing.assert_array_equal(merged[1], whole[1])


def step_anew(x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64]) -> Sums:
    return partial_sums(x_ND, assign(x_ND, centroids_KD)[0], len(centroids_KD))


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_part_remembers_does_not_show(threads: int) -> None:
    x_ND, _ = groups(4000, 8, 16)
    part = Part(x_ND, threads=threads)
    centroids_KD = unit_rows(x_ND[:20])
    for _ in range(6):
        sums_KD, counts_K = part.step(centroids_KD)
        expected_KD, expected_K = step_anew(x_ND, centroids_KD)
        np.testing.assert_array_equal(sums_KD, expected_KD)
        np.testing.assert_array_equal(counts_K, expected_K)
        centroids_KD = update_centroids(sums_KD, counts_K, centroids_KD)
    fewer_KD = centroids_KD[:3]
    np.testing.assert_array_equal(part.step(fewer_KD)[0], step_anew(x_ND, fewer_KD)[0])
    sums_KD, _ = part.step(fewer_KD)
    sums_KD[:] = 0
    np.testing.assert_array_equal(part.step(fewer_KD)[0], step_anew(x_ND, fewer_KD)[0])


def test_part_without_rows() -> None:
    sums_KD, counts_K = Part(np.zeros((0, 4), dtype=np.float16)).step(np.eye(4))
    assert not sums_KD.any()
    assert counts_K.tolist() == [0] * 4


def test_update_by_hand() -> None:
    previous_KD = np.array([[1.0, 0], [0, 1.0], [1.0, 0]])
    sums_KD = np.array([[3.0, 4.0], [0, 0], [0, 0]])
    updated_KD = update_centroids(sums_KD, np.array([7, 0, 2]), previous_KD)
    assert updated_KD.tolist() == [[np.rint(0.6 * 2**28) / 2**28, np.rint(0.8 * 2**28) / 2**28], [0, 1], [1, 0]]


def test_updated_slices_equal_the_whole() -> None:
    x_ND, group_N = groups(300, 6, 33)
    sums_KD, counts_K = partial_sums(x_ND, group_N.astype(np.int32), 6)
    whole_KD = update_centroids(sums_KD, counts_K, np.zeros((6, 33)))
    rows = slice(2, 5)
    np.testing.assert_array_equal(update_centroids(sums_KD[rows], counts_K[rows], np.zeros((3, 33))), whole_KD[rows])


def test_unit_rows_lie_on_the_grid() -> None:
    unit_KD = unit_rows(np.random.default_rng(0).standard_normal((10, 77)))
    np.testing.assert_array_equal(unit_KD * 2**28, np.rint(unit_KD * 2**28))
    np.testing.assert_allclose(np.linalg.norm(unit_KD, axis=1), 1, atol=1e-7)
    assert unit_rows(np.zeros((1, 3))).tolist() == [[0, 0, 0]]


def test_repair_splits_the_largest_and_the_lowest_of_equals() -> None:
    centroids_KD = unit_rows(np.array([[1.0, 1], [1, 0], [0, 1], [1, 0]]))
    before_KD = centroids_KD.copy()
    repaired_KD = repair_empty(centroids_KD, np.array([0, 6, 6, 0]))
    np.testing.assert_array_equal(centroids_KD, before_KD)
    # 6 at clusters 1 and 2: cluster 0 takes half of 1, then cluster 3 half of 2.
    np.testing.assert_allclose(repaired_KD[[0, 1]], before_KD[[1, 1]], atol=2e-3)
    np.testing.assert_allclose(repaired_KD[[3, 2]], before_KD[[2, 2]], atol=2e-3)
    np.testing.assert_array_equal(repaired_KD, unit_rows(repaired_KD))
    separated_KD = unit_rows(np.array([[1.0, 1.0], [0.0, 0.0]]))
    halves_KD = repair_empty(separated_KD, np.array([4, 0]))
    assert halves_KD[1, 0] > halves_KD[1, 1]
    assert halves_KD[0, 0] < halves_KD[0, 1]


def test_repair_leaves_full_clusters_alone() -> None:
    centroids_KD = np.eye(3)
    assert repair_empty(centroids_KD, np.array([1, 2, 3])) is centroids_KD
    assert repair_empty(centroids_KD, np.array([0, 0, 0])) is centroids_KD


def test_inertia_equals_the_mean_distance() -> None:
    x_ND, _ = groups(700, 5, 12)
    centroids_KD = unit_rows(x_ND[:5])
    cluster_N, similarity_N = assign(x_ND, centroids_KD)
    sums_KD, counts_K = partial_sums(x_ND, cluster_N, 5)
    similarity_K = summed_similarity(sums_KD, centroids_KD)
    # Not equal: a similarity is clipped to 1, and float16 rows are up to 5e-4 longer.
    assert inertia(similarity_K, counts_K) == pytest.approx((1 - similarity_N).mean(), abs=1e-6)
    np.testing.assert_allclose(similarity_K, np.bincount(cluster_N, similarity_N, minlength=5), rtol=1e-5)


def test_lowest_keys_order_by_hash_then_uid() -> None:
    key_N3 = np.array([[5, 0, 1], [3, 9, 9], [5, 0, 0], [7, 0, 0], [3, 9, 8]], dtype=np.uint64)
    assert lowest_keys(key_N3, 2).tolist() == [4, 1]
    assert lowest_keys(key_N3, 3).tolist() == [4, 1, 2]
    assert lowest_keys(key_N3, 9).tolist() == [4, 1, 2, 0, 3]
    assert lowest_keys(key_N3[:0], 2).tolist() == []


def test_initial_keys_belong_to_the_uid() -> None:
    high_N, low_N = np.arange(50, dtype=np.uint64), np.arange(50, 100, dtype=np.uint64)
    key_N3 = initial_keys(high_N, low_N, 0)
    np.testing.assert_array_equal(initial_keys(high_N[::-1], low_N[::-1], 0), key_N3[::-1])
    np.testing.assert_array_equal(key_N3[:, 1:], np.stack([high_N, low_N], axis=1))
    assert (initial_keys(high_N, low_N, 1)[:, 0] != key_N3[:, 0]).all()


def test_separated_groups_are_found() -> None:
    x_ND, group_N = groups(2000, 6, 32)
    part, centroids_KD = Part(x_ND), unit_rows(x_ND[:40])
    history = []
    for _ in range(10):
        sums_KD, counts_K = part.step(centroids_KD)
        history.append(inertia(summed_similarity(sums_KD, centroids_KD), counts_K))
        centroids_KD = repair_empty(update_centroids(sums_KD, counts_K, centroids_KD), counts_K)
    assert history == sorted(history, reverse=True)
    cluster_N, _ = assign(x_ND, centroids_KD)
    assert all(len(set(group_N[cluster_N == cluster].tolist())) <= 1 for cluster in range(40))


def lloyd(x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64], metric: Metric, iterations: int) -> list[float]:
    """Textbook k-means in float64, by distances: the objective before each update. Changes the centroids in place."""
    objective = []
    for _ in range(iterations):
        squared_NK = ((x_ND[:, None].astype(np.float64) - centroids_KD) ** 2).sum(axis=2)
        cosine_NK = x_ND.astype(np.float64) @ centroids_KD.T
        cluster_N = cosine_NK.argmax(axis=1) if metric == "spherical" else squared_NK.argmin(axis=1)
        own = np.arange(len(x_ND)), cluster_N
        objective.append(float((1 - cosine_NK[own] if metric == "spherical" else squared_NK[own] / 2).mean()))
        for cluster in np.unique(cluster_N):
            mean_D = x_ND[cluster_N == cluster].astype(np.float64).mean(axis=0)
            centroids_KD[cluster] = mean_D / np.linalg.norm(mean_D) if metric == "spherical" else mean_D
    return objective


@pytest.mark.parametrize("metric", ["spherical", "euclidean"])
def test_agrees_with_the_textbook(metric: Metric) -> None:
    x_ND, _ = groups(800, 7, 20)
    part, centroids_KD = Part(x_ND, metric, threads=2), first_centroids(x_ND[:25], metric)
    theirs_KD = centroids_KD.copy()
    expected, history = lloyd(x_ND, theirs_KD, metric, 8), []
    for _ in range(8):
        sums_KD, counts_K = part.step(centroids_KD)
        history.append(inertia(summed_similarity(sums_KD, centroids_KD, counts_K, metric), counts_K))
        centroids_KD = update_centroids(sums_KD, counts_K, centroids_KD, metric)
    np.testing.assert_allclose(history, expected, atol=2e-4)  # the lengths of float16 rows are that far from 1
    np.testing.assert_allclose(centroids_KD, theirs_KD, atol=1e-8)
    assert history == sorted(history, reverse=True)


def test_euclidean_by_hand() -> None:
    centroids_KD = np.array([[0.5, 0.0], [0.0, 1.0]])
    assert offsets(centroids_KD, "euclidean").tolist() == [0.375, 0.0]  # type: ignore[union-attr]
    assert offsets(centroids_KD, "spherical") is None
    x_ND = np.array([[1, 0], [0.625, 0.75], [0, 1]], dtype=np.float16)
    cluster_N, similarity_N = assign(x_ND, centroids_KD, offsets(centroids_KD, "euclidean"))
    assert cluster_N.tolist() == [0, 1, 1]
    assert similarity_N.tolist() == [0.875, 0.75, 1.0]  # 1 - |x - c|^2 / 2 of unit rows
    sums_KD, counts_K = partial_sums(x_ND, cluster_N, 2)
    assert summed_similarity(sums_KD, centroids_KD, counts_K, "euclidean").tolist() == [0.875, 1.75]
    updated_KD = update_centroids(sums_KD, counts_K, centroids_KD, "euclidean")
    assert updated_KD.tolist() == [[1, 0], [0.3125, 0.875]]


def test_euclidean_means_lie_on_the_grid_and_empty_clusters_stay() -> None:
    sums_KD, previous_KD = np.array([[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]]), np.full((3, 2), 0.25)
    updated_KD = update_centroids(sums_KD, np.array([3, 0, 2]), previous_KD, "euclidean")
    np.testing.assert_array_equal(updated_KD, [round_to_grid(np.array([1 / 3, 1 / 6])), [0.25, 0.25], [0, 0]])


def test_euclidean_repair_keeps_the_length() -> None:
    repaired_KD = repair_empty(np.array([[0.5, 0.25], [0.0, 0.0]]), np.array([4, 0]), "euclidean")
    assert repaired_KD.tolist() == [
        [0.5 * (1 - 2**-10), 0.25 * (1 + 2**-10)],
        [0.5 * (1 + 2**-10), 0.25 * (1 - 2**-10)],
    ]


@pytest.mark.parametrize("threads", [1, 3])
def test_euclidean_search_equals_float64(threads: int) -> None:
    x_ND, _ = groups(3000, 6, 32)
    generator = np.random.default_rng(2)
    near_KD = unit_rows(x_ND[:300]) * generator.uniform(0.3, 1.0, (300, 1))
    centroids_KD = round_to_grid(np.concatenate([near_KD, near_KD[:50]]))  # the copies tie and never win
    offset_K = offsets(centroids_KD, "euclidean")
    expected_N = (x_ND.astype(np.float64) @ centroids_KD.T + offset_K).argmax(axis=1)
    cluster_N, _ = assign(x_ND, centroids_KD, offset_K, threads=threads)
    np.testing.assert_array_equal(cluster_N, expected_N)
    sums_KD, counts_K = Part(x_ND, "euclidean", threads=threads).step(centroids_KD)
    np.testing.assert_array_equal(counts_K, np.bincount(expected_N, minlength=350))
    np.testing.assert_array_equal(sums_KD, partial_sums(x_ND, expected_N.astype(np.int32), 350)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["spherical", "euclidean"])
@pytest.mark.parametrize("search", [exact_search, group_search])
def test_a_gpu_gives_the_same_bytes(metric: Metric, search: Search) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x_ND, _ = groups(5000, 8, 64)
    centroids_KD = first_centroids(x_ND[:700], metric)
    here, there = (Part(x_ND, metric, device=device, search=search) for device in ("cpu", "cuda"))
    for _ in range(4):
        sums_KD, counts_K = here.step(centroids_KD)
        theirs_KD, theirs_K = there.step(centroids_KD)
        np.testing.assert_array_equal(theirs_KD, sums_KD)
        np.testing.assert_array_equal(theirs_K, counts_K)
        centroids_KD = update_centroids(sums_KD, counts_K, centroids_KD, metric)
