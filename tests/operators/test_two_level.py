"""Legend: N rows, K centroids, G groups, D dimensions."""

import numpy as np
import pytest
from numpy.typing import NDArray

from operators import two_level
from operators.kmeans import Metric, Part, exact_search, offsets, unit_rows
from operators.screen import measure_rows
from operators.two_level import group_centroids, group_search, nearest_by_groups


def topics(num_rows: int, seed: int) -> NDArray[np.float16]:
    generator = np.random.default_rng(seed)
    topics_GD = np.random.default_rng(9).standard_normal((20, 16))
    x_ND = topics_GD[generator.integers(0, 20, num_rows)] + 0.7 * generator.standard_normal((num_rows, 16))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)


def centroids_of(metric: Metric) -> NDArray[np.float64]:
    x_KD = topics(400, seed=1)
    return unit_rows(x_KD) if metric == "spherical" else x_KD.astype(np.float64) / 2


def searched_naively(
    x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64], metric: Metric, probes: int
) -> NDArray[np.int64]:
    """All products in float64; groups and their centres as the search has them."""
    groups = group_centroids(centroids_KD, metric)
    offset_K = 0.0 if metric == "spherical" else offsets(centroids_KD, metric)
    score_NK = x_ND.astype(np.float64) @ centroids_KD.T + offset_K
    score_NG = x_ND.astype(np.float64) @ groups.centre_GD.numpy().T + groups.offset_G.numpy()
    last_N = np.sort(score_NG, axis=1)[:, -min(probes, score_NG.shape[1])]
    for group, members in enumerate(groups.members):
        score_NK[np.ix_(score_NG[:, group] < last_N, members)] = -np.inf
    return score_NK.argmax(axis=1)


@pytest.mark.parametrize("metric", ["spherical", "euclidean"])
@pytest.mark.parametrize("probes", [1, 3, 100])
def test_equals_a_search_in_float64(metric: Metric, probes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_level, "GROUP_SIZE", 25)
    monkeypatch.setattr(two_level, "PROBES", probes)
    monkeypatch.setattr(two_level, "_BLOCK_ROWS", 130)
    x_ND, centroids_KD = topics(300, seed=2), centroids_of(metric)
    rows = measure_rows(x_ND)
    expected_N = searched_naively(x_ND, centroids_KD, metric, probes)
    for threads in (1, 4):
        found_N = group_search(centroids_KD, metric, threads=threads, device="cpu")(rows)
        assert found_N.dtype == np.int32
        np.testing.assert_array_equal(found_N, expected_N)
    exact_N = exact_search(centroids_KD, metric, threads=1, device="cpu")(rows)
    assert (exact_N == found_N).mean() >= {1: 0.5, 3: 0.9, 100: 1.0}[probes]


def test_every_centroid_is_in_one_group() -> None:
    centroids_KD = np.tile(centroids_of("spherical")[:100], (6, 1))
    groups = group_centroids(centroids_KD, "spherical", threads=2)
    assert sorted(np.concatenate(groups.members).tolist()) == list(range(600))
    assert all(len(ids) for ids in groups.members)
    assert len(groups.columns) == len(groups.centre_GD) == len(groups.offset_G) == len(groups.members)


def test_equal_centroids_go_to_the_lowest() -> None:
    centroids_KD = np.tile(centroids_of("spherical")[:7], (90, 1))
    found_N = nearest_by_groups(measure_rows(topics(50, seed=3)), group_centroids(centroids_KD, "spherical"))
    assert found_N.max() < 7


@pytest.mark.parametrize("clusters", [1, 2])
def test_few_centroids_and_no_rows(clusters: int) -> None:
    x_ND, centroids_KD = topics(30, seed=4), centroids_of("spherical")[:clusters]
    find = group_search(centroids_KD, "spherical", threads=1, device="cpu")
    exact_N = exact_search(centroids_KD, "spherical", threads=1, device="cpu")(measure_rows(x_ND))
    np.testing.assert_array_equal(find(measure_rows(x_ND)), exact_N)
    assert find(measure_rows(x_ND[:0])).tolist() == []


def test_a_part_searches_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_level, "GROUP_SIZE", 40)
    monkeypatch.setattr(two_level, "PROBES", 100)
    x_ND, centroids_KD = topics(500, seed=5), centroids_of("euclidean")
    by_groups = Part(x_ND, "euclidean", search=group_search).step(centroids_KD)
    exactly = Part(x_ND, "euclidean").step(centroids_KD)
    np.testing.assert_array_equal(by_groups[0], exactly[0])
    np.testing.assert_array_equal(by_groups[1], exactly[1])
