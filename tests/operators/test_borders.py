"""Borders: nothing near is ever left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.borders import near_border, neighbour_pairs
from operators.certified import assign
from operators.embeddings import to_unit_float16
from operators.kmeans import unit_rows


def test_neighbours_by_hand():
    angles = np.array([0.0, 0.3, 1.0, 3.0])
    centroids_KD = unit_rows(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    np.testing.assert_array_equal(neighbour_pairs(centroids_KD, 1), [[0, 1], [1, 2], [2, 3]])
    np.testing.assert_array_equal(neighbour_pairs(centroids_KD, 9), [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    assert neighbour_pairs(centroids_KD, 0).shape == neighbour_pairs(centroids_KD[:1], 5).shape == (0, 2)


def test_equal_neighbours_go_to_the_lowest_cluster():
    centroids_KD = np.eye(5)
    np.testing.assert_array_equal(neighbour_pairs(centroids_KD, 1), [[0, 1], [0, 2], [0, 3], [0, 4]])


@pytest.mark.parametrize("count", [1, 3, 7])
def test_neighbours_against_brute_force(count, monkeypatch):
    monkeypatch.setattr("operators.borders._BLOCK_BYTES", 1000)
    centroids_KD = unit_rows(np.random.default_rng(0).standard_normal((30, 6)))
    rounded = centroids_KD.astype(np.float16).astype(np.float64)
    expected = set()
    for own in range(30):
        others = sorted((other for other in range(30) if other != own), key=lambda o: (-(rounded[own] @ rounded[o]), o))
        expected |= {(min(own, other), max(own, other)) for other in others[:count]}
    assert set(map(tuple, neighbour_pairs(centroids_KD, count).tolist())) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([5e-4, 0.01, 0.1, 0.4]))
def test_no_near_pair_is_left_out(seed, dims, epsilon):
    rng = np.random.default_rng(seed)
    x_ND = to_unit_float16(rng.standard_normal((200, dims)))[0]
    centroids_KD = unit_rows(rng.standard_normal((3, dims)))
    cluster_N, _ = assign(x_ND, centroids_KD)
    dot_NN = x_ND.astype(np.float64) @ x_ND.astype(np.float64).T
    for own, other in [(0, 1), (1, 2), (2, 0)]:
        mine, theirs = np.flatnonzero(cluster_N == own), np.flatnonzero(cluster_N == other)
        near_M = near_border(x_ND[mine], centroids_KD[own], centroids_KD[other], epsilon)
        has_partner_M = (dot_NN[np.ix_(mine, theirs)] > 1 - epsilon).any(axis=1)
        assert not (has_partner_M & ~near_M).any()


def test_rows_deep_inside_a_cluster_are_left_out():
    x_ND = np.array([[1, 0], [0.8, 0.6]], dtype=np.float16)
    near = near_border(x_ND, np.array([1.0, 0]), np.array([0.0, 1.0]), 0.02)
    np.testing.assert_array_equal(near, [False, True])
