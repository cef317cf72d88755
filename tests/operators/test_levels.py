"""Upper levels of a hierarchy. Legend: N rows, K clusters, D dimensions."""

import numpy as np
import pytest

from operators.embeddings import to_unit_float16
from operators.hashing import generator
from operators.kmeans import initial_keys, lowest_keys, repair_empty, unit_rows, update_centroids
from operators.levels import Effort, cluster_level, derived_seed, nearest_members, points_to_keep


def uneven(num_rows: int = 600, dims: int = 8, seed: int = 0) -> np.ndarray:
    """Nine tenths of the rows around one direction, the rest anywhere."""
    random = np.random.default_rng(seed)
    x_ND = random.standard_normal((num_rows, dims))
    x_ND[: num_rows * 9 // 10] = np.eye(dims)[0] + 0.2 * x_ND[: num_rows * 9 // 10]
    return unit_rows(x_ND)


def naive_level(below_ND, k, effort, seed):
    """The same in float64 with plain loops, from the same first centroids."""
    x_ND = to_unit_float16(below_ND)[0].astype(np.float64)

    def nearest(rows_ND, centroids_KD):
        return np.argmax(rows_ND @ centroids_KD.T, axis=1)

    def fit(rows, fit_seed):
        keys = initial_keys(np.zeros(len(rows), np.uint64), np.array(rows, np.uint64), fit_seed)
        centroids_KD = unit_rows(x_ND[rows][lowest_keys(keys, k)])
        for _ in range(effort.iterations):
            label = nearest(x_ND[rows], centroids_KD)
            sums = np.stack([x_ND[rows][label == j].sum(axis=0) for j in range(k)])
            counts = np.bincount(label, minlength=k)
            centroids_KD = repair_empty(update_centroids(sums, counts, centroids_KD), counts)
        return centroids_KD

    centroids_KD = fit(range(len(x_ND)), seed)
    for number in range(effort.rounds):
        label = nearest(x_ND, centroids_KD)
        keep = []
        for j in range(k):
            members = np.flatnonzero(label == j)
            ranked = sorted(members, key=lambda row: (-(x_ND[row] @ centroids_KD[j]).clip(-1, 1), row))
            keep += ranked[: points_to_keep(len(x_ND), k, effort.points)]
        if len(keep) < k:
            break
        centroids_KD = fit(sorted(keep), derived_seed(seed, "round", str(number)))
    return centroids_KD, nearest(x_ND, centroids_KD)


@pytest.mark.parametrize("effort", [Effort(4, 0), Effort(5, 3), Effort(3, 2, points=5), Effort(0, 1)])
def test_equals_plain_loops(effort):
    below_ND = uneven()
    centroids_KD, parent_N = cluster_level(below_ND, 12, effort, seed=7)
    expected_KD, expected_N = naive_level(below_ND, 12, effort, 7)
    np.testing.assert_array_equal(centroids_KD, expected_KD)
    np.testing.assert_array_equal(parent_N, expected_N)
    assert parent_N.dtype == np.int32


def test_threads_and_repetition_change_nothing():
    below_ND = uneven(3000)
    first = cluster_level(below_ND, 20, Effort(5, 2), seed=1)
    for threads in (1, 4):
        again = cluster_level(below_ND, 20, Effort(5, 2), seed=1, threads=threads)
        assert [a.tobytes() for a in again] == [a.tobytes() for a in first]


def test_resampling_evens_out():
    below_ND = uneven(2000)

    def share_in_the_crowd(rounds: int) -> float:
        centroids_KD, _ = cluster_level(below_ND, 20, Effort(10, rounds, points=10), seed=0)
        return float((centroids_KD[:, 0] > 0.75).mean())

    assert share_in_the_crowd(10) < share_in_the_crowd(0) / 2


def test_nearest_members_by_hand():
    cluster_N = np.array([1, 0, 1, 1, 0, 1], np.int32)
    similarity_N = np.array([0.5, 0.1, 0.9, 0.5, 0.2, 0.5])
    assert nearest_members(cluster_N, similarity_N, 1).tolist() == [2, 4]
    assert nearest_members(cluster_N, similarity_N, 3).tolist() == [0, 1, 2, 3, 4]  # ties to the lowest row
    assert nearest_members(cluster_N[:0], similarity_N[:0], 3).tolist() == []


def test_one_cluster_as_many_clusters_as_rows_and_identical_rows():
    below_ND = uneven(30)
    assert cluster_level(below_ND, 1, Effort(3, 2), seed=0)[1].tolist() == [0] * 30
    assert sorted(cluster_level(below_ND, 30, Effort(3, 2), seed=0)[1].tolist()) == list(range(30))
    same_ND = np.tile(below_ND[:1], (10, 1))
    centroids_KD, parent_N = cluster_level(same_ND, 4, Effort(3, 2), seed=0)
    assert len(set(parent_N.tolist())) == 1  # all tie, so all go to one cluster, and too few are left to resample
    assert centroids_KD.shape == (4, 8)


def test_a_level_has_at_most_as_many_clusters_as_the_one_below():
    with pytest.raises(AssertionError):
        cluster_level(np.eye(3), 4, Effort(1, 0), seed=0)


def test_points_and_seeds():
    assert points_to_keep(1000, 100, None) == 5
    assert points_to_keep(10, 8, None) == 1
    assert points_to_keep(1000, 100, 3) == 3
    assert derived_seed(5, "round", "2") == int(generator(5, "round", "2").integers(2**63))
