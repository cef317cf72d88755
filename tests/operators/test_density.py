import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import operators.density as density
from operators.density import densities, exp, inter_distances, intra_distances, softmax
from operators.errors import ConfigError


def unit_rows(num_rows, num_dims, seed=0):
    rows = np.random.default_rng(seed).normal(size=(num_rows, num_dims))
    return np.rint(rows / np.linalg.norm(rows, axis=1, keepdims=True) * 2**28) / 2**28


def inter_by_hand(centroids, num_neighbours):
    cosines = np.array([[math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in centroids] for x in centroids])
    np.fill_diagonal(cosines, -np.inf)
    return 1 - np.sort(cosines, axis=1)[:, ::-1][:, : min(num_neighbours, len(centroids) - 1)].mean(axis=1)


def test_intra_by_hand():
    # Cluster 0: members (1, 0) and (0, 1) around (1, 0): distances 0 and 1. Cluster 1 has no members.
    d_intra = intra_distances(np.array([1.0, 0.0]), np.array([2, 0]))
    assert d_intra.tolist() == [0.5, 0.0]


def test_intra_is_the_mean_distance_of_the_members():
    members = unit_rows(50, 33).astype(np.float16).astype(np.float64)
    centroid = unit_rows(1, 33, seed=1)
    d_intra = intra_distances(members.sum(axis=0, keepdims=True) @ centroid[0], np.array([50]))
    assert d_intra[0] == pytest.approx(np.mean(1 - members @ centroid[0]), abs=1e-12)


def test_intra_is_never_negative():
    centroid = unit_rows(1, 64)
    assert intra_distances((centroid * 3) @ centroid[0], np.array([3]))[0] >= 0


def test_inter_by_hand():
    centroids = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert inter_distances(centroids, 1).tolist() == [1.0, 1.0, 1.0]
    assert inter_distances(centroids, 20).tolist() == [1.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("num_clusters", "num_dims", "num_neighbours"), [(2, 1, 1), (30, 7, 20), (60, 16, 5), (60, 16, 99)]
)
def test_inter_equals_the_naive_mean(num_clusters, num_dims, num_neighbours):
    centroids = unit_rows(num_clusters, num_dims)
    expected = inter_by_hand(centroids, num_neighbours)
    np.testing.assert_allclose(inter_distances(centroids, num_neighbours), expected, atol=1e-12)


def test_inter_has_the_same_bits_for_any_block_and_any_screen(monkeypatch):
    centroids = unit_rows(120, 24)
    usual = inter_distances(centroids, 6)
    monkeypatch.setattr(density, "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(inter_distances(centroids, 6), usual)
    monkeypatch.setattr(density, "SPARE_CANDIDATES", 500)
    np.testing.assert_array_equal(inter_distances(centroids, 6), usual)


def test_inter_survives_neighbours_that_float32_cannot_tell_apart(monkeypatch):
    monkeypatch.setattr(density, "SPARE_CANDIDATES", 0)
    near = unit_rows(1, 8) + unit_rows(60, 8, seed=3) / 2**12
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    np.testing.assert_allclose(inter_distances(near, 3), inter_by_hand(near, 3), atol=1e-15)


def test_inter_edges():
    assert inter_distances(unit_rows(1, 4), 20).tolist() == [1.0]
    np.testing.assert_allclose(inter_distances(np.repeat(unit_rows(1, 4), 40, axis=0), 3), 0, atol=1e-8)
    with pytest.raises(ConfigError, match="num_neighbours must be at least 1, got 0"):
        inter_distances(unit_rows(3, 4), 0)


def test_densities_by_hand():
    d_intra, d_inter, sizes = np.array([0.5, 0.25]), np.array([0.5, 1.0]), np.array([2, 8])
    assert densities("dintra*dinter", d_intra, d_inter, sizes).tolist() == [0.25, 0.25]
    assert densities("uniform", d_intra, d_inter, sizes).tolist() == [1.0, 1.0]
    assert densities("clustersize", d_intra, d_inter, sizes).tolist() == [0.25, 1.0]
    with pytest.raises(ConfigError, match="got volume"):
        densities("volume", d_intra, d_inter, sizes)


def test_softmax_by_hand():
    shares = softmax(np.array([0.0, math.log(3) / 10, 9.0]), 0.1, np.array([1, 1, 0]))
    np.testing.assert_allclose(shares, [0.25, 0.75, 0.0], rtol=1e-15)


@given(st.lists(st.floats(0, 4), min_size=1, max_size=50), st.sampled_from([1e-300, 1e-3, 0.1, 10.0, 1e9]))
def test_softmax_is_stable_and_monotone(values, temperature):
    values = np.array(values)
    shares = softmax(values, temperature, np.ones(values.size, np.int64))
    assert math.fsum(shares) == pytest.approx(1, abs=1e-12)
    assert (np.diff(shares[np.argsort(values, kind="stable")]) >= 0).all()


def test_softmax_edges():
    assert softmax(np.array([0.3, 0.1]), 0.1, np.array([0, 0])).tolist() == [0.0, 0.0]
    assert softmax(np.array([0.3]), 0.1, np.array([5])).tolist() == [1.0]
    with pytest.raises(ConfigError, match="temperature must be above 0, got 0"):
        softmax(np.array([0.3]), 0, np.array([5]))


def test_exp_is_within_two_units_in_the_last_place():
    x = -np.concatenate([np.linspace(0, 2, 20_001), np.geomspace(1e-18, 700, 20_001)])
    expected = np.array([math.exp(v) for v in x.tolist()])
    assert (np.abs(exp(x) - expected) <= 2 * np.spacing(expected)).all()
    assert exp(np.array([0.0, -800.0, -np.inf])).tolist() == [1.0, *exp(np.array([-745.0, -745.0]))]
