import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

import operators.prototypes as module
from operators.embeddings import to_unit_float16
from operators.errors import ConfigError
from operators.exact import round_to_grid
from operators.kmeans import partial_sums, unit_rows
from operators.prototypes import cosine_distance, margins, mean_prototypes, num_above_quantile


def stored_rows(num_rows, num_dims, seed=0):
    return to_unit_float16(np.random.default_rng(seed).normal(size=(num_rows, num_dims)) + 0.3)[0]


def test_margin_by_hand():
    x = np.array([[1, 0], [0, 1]], np.float16)
    prototypes = np.array([[1.0, 0], [0, 1], [-1, 0], [0, 0]])
    found = margins(x, prototypes, np.array([0, 2]))
    assert found.own_N.tolist() == [0.0, math.sqrt(2)]
    assert found.second_N.tolist() == [1.0, 0.0]
    assert found.third_N.tolist() == [math.sqrt(2), 1.0]
    assert found.other_N.tolist() == [3, 1]
    assert found.value_N.tolist() == [-1.0 - math.sqrt(2), math.sqrt(2) - 1.0]


def test_ties_go_to_the_lowest_prototype():
    prototypes = np.array([[1.0, 0], [0, 1], [0, 1], [0, -1]])
    found = margins(np.array([[1, 0]], np.float16), prototypes, np.array([0]))
    assert found.other_N.tolist() == [1]
    assert (found.second_N == found.third_N).all()


@pytest.mark.parametrize("num_prototypes", [3, 4, 50])
def test_margins_agree_with_a_distance_matrix(num_prototypes):
    x = stored_rows(200, 16)
    prototypes = round_to_grid(np.random.default_rng(1).normal(size=(num_prototypes, 16)) / 8)
    own = np.random.default_rng(2).integers(0, num_prototypes, 200).astype(np.int32)
    distances = cdist(x.astype(np.float64), prototypes)
    found = margins(x, prototypes, own)
    np.testing.assert_allclose(found.own_N, distances[np.arange(200), own], atol=1e-12)
    distances[np.arange(200), own] = np.inf
    np.testing.assert_array_equal(found.other_N, distances.argmin(axis=1))
    np.testing.assert_allclose(np.stack([found.second_N, found.third_N], 1), np.sort(distances)[:, :2], atol=1e-12)


def test_the_bits_do_not_depend_on_blocks_or_on_the_order_of_rows(monkeypatch):
    x, own = stored_rows(97, 24), np.arange(97) % 5
    prototypes = unit_rows(stored_rows(5, 24, seed=3).astype(np.float64))
    margin, distance = margins(x, prototypes, own), cosine_distance(x, prototypes, own)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    order = np.random.default_rng(0).permutation(97)
    for one, other in zip(margin, margins(x[order], prototypes, own[order]), strict=True):
        np.testing.assert_array_equal(one[order], other)
    np.testing.assert_array_equal(distance[order], cosine_distance(x[order], prototypes, own[order]))


def test_cosine_distance_by_hand():
    x = np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float16)
    unit = np.array([[1.0, 0.0], [0.0, -1.0]])
    assert cosine_distance(x, unit, np.array([0, 1, 0])).tolist() == [0.0, 2.0, 0.5]


def test_class_prototypes_are_means_of_the_stored_rows():
    x, own = stored_rows(60, 12), np.arange(60) % 3
    sums, counts = partial_sums(x, own.astype(np.int32), 4)
    means = mean_prototypes(sums, counts)
    expected = [x[own == c].astype(np.float64).mean(axis=0) for c in range(3)]
    np.testing.assert_allclose(means[:3], expected, atol=2.0**-28)
    assert not means[3].any()
    np.testing.assert_allclose(np.linalg.norm(unit_rows(sums)[:3], axis=1), 1, atol=1e-7)
    np.testing.assert_array_equal(means, round_to_grid(means))


def test_a_margin_needs_three_prototypes():
    with pytest.raises(ConfigError, match="must compare a prototype with two others, got 2 in all"):
        margins(stored_rows(1, 4), np.zeros((2, 4)), np.array([0]))


def test_no_rows():
    none = np.zeros((0, 4), np.float16)
    assert margins(none, np.zeros((3, 4)), np.zeros(0, np.int32)).value_N.tolist() == []
    assert cosine_distance(none, np.zeros((3, 4)), np.zeros(0, np.int32)).tolist() == []


def test_above_the_quantile_by_hand():
    # Ten values: the 0.9 quantile lies at position 8.1, so only the last is above. Eleven: at 9.0, again only the last.
    assert num_above_quantile(np.array([0, 1, 2, 10, 11, 12, 21]), 0.9).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert num_above_quantile(np.array([5]), 0.0).tolist() == [4]


@given(st.integers(1, 400), st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 0.99]))
def test_above_the_quantile_agrees_with_numpy(size, quantile):
    values = np.arange(size)
    expected = np.count_nonzero(values > np.quantile(values, quantile) + 1e-9)
    assert num_above_quantile(np.array([size]), quantile).tolist() == [expected]
