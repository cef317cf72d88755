"""Hierarchical clustering against scikit-learn, a naive loop and hand-made cases. Legend: N rows, D dimensions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from operators import hac
from operators.errors import ConfigError, InputError
from operators.hac import (
    HierarchicalAgglomerativeClustering,
    clusters_beyond,
    cut_tree,
    merge_tree,
    number_by_appearance,
    pair_distances,
)

LINKAGES = ("average", "complete", "single", "ward")
PAIRS = [(metric, linkage) for metric in ("euclidean", "cosine") for linkage in LINKAGES]
PAIRS.remove(("cosine", "ward"))


def blobs(num_rows: int = 120, dims: int = 6, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = 3 * generator.standard_normal((5, dims))
    return centres[generator.integers(0, 5, num_rows)] + generator.standard_normal((num_rows, dims))


def naive_labels(x_ND, metric, linkage, num_clusters):
    """Merges the two nearest clusters over and over, by the definition of the linkage."""

    def apart(a, b):
        if metric == "euclidean":
            return np.linalg.norm(x_ND[a] - x_ND[b])
        return 1 - x_ND[a] @ x_ND[b] / np.linalg.norm(x_ND[a]) / np.linalg.norm(x_ND[b])

    def between(first, second):
        if linkage == "ward":
            means = x_ND[first].mean(0) - x_ND[second].mean(0)
            return np.sqrt(2 * len(first) * len(second) / (len(first) + len(second))) * np.linalg.norm(means)
        reduce = {"average": np.mean, "complete": np.max, "single": np.min}[linkage]
        return reduce([apart(a, b) for a in first for b in second])

    groups = [[row] for row in range(len(x_ND))]
    while len(groups) > num_clusters:
        first, second = min(
            itertools.combinations(range(len(groups)), 2), key=lambda p: between(*(groups[i] for i in p))
        )
        groups[first] += groups.pop(second)
    labels_N = np.empty(len(x_ND), int)
    for label, group in enumerate(groups):
        labels_N[group] = label
    return number_by_appearance(labels_N)


@pytest.mark.parametrize(("metric", "linkage"), PAIRS)
def test_equals_scikit_learn(metric, linkage):
    x_ND = blobs()
    for n_clusters in (1, 2, 5, 17, 120):
        theirs = AgglomerativeClustering(n_clusters, metric=metric, linkage=linkage).fit_predict(x_ND)
        ours = HierarchicalAgglomerativeClustering(metric, linkage, n_clusters=n_clusters).fit_predict(x_ND)
        assert ours.tolist() == number_by_appearance(theirs).tolist()
    heights = np.sort(
        AgglomerativeClustering(None, metric=metric, linkage=linkage, distance_threshold=0.0).fit(x_ND).distances_
    )
    ours = HierarchicalAgglomerativeClustering(metric, linkage).fit(x_ND).linkage_matrix_
    np.testing.assert_allclose(ours[:, 2], heights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("metric", "linkage"), PAIRS)
def test_thresholds_equal_scikit_learn(metric, linkage):
    x_ND = blobs(60)
    heights = HierarchicalAgglomerativeClustering(metric, linkage).fit(x_ND).linkage_matrix_[:, 2]
    for threshold in (0.0, (heights[20] + heights[21]) / 2, (heights[-3] + heights[-2]) / 2, heights[-1] + 1):
        tree = AgglomerativeClustering(None, metric=metric, linkage=linkage, distance_threshold=threshold)
        ours = HierarchicalAgglomerativeClustering(metric, linkage, distance_threshold=threshold)
        assert ours.fit_predict(x_ND).tolist() == number_by_appearance(tree.fit_predict(x_ND)).tolist()


@pytest.mark.parametrize(("metric", "linkage"), PAIRS)
def test_equals_the_definition(metric, linkage):
    x_ND = blobs(14, seed=3)
    ours = HierarchicalAgglomerativeClustering(metric, linkage, n_clusters=4).fit_predict(x_ND)
    assert ours.tolist() == naive_labels(x_ND, metric, linkage, 4).tolist()


def test_by_hand():
    # 0 and 1 merge at 1, then 10 and 12 at 2, then both pairs at the mean of 10, 12, 9, 11.
    model = HierarchicalAgglomerativeClustering(n_clusters=2).fit(np.array([[10.0], [0], [12], [1]]))
    assert model.labels_.tolist() == [0, 1, 0, 1]
    assert model.linkage_matrix_.tolist() == [[1, 3, 1, 2], [0, 2, 2, 2], [4, 5, 10.5, 4]]
    assert clusters_beyond(model.linkage_matrix_, 2.0) == 3  # a merge at the very threshold is not made
    assert clusters_beyond(model.linkage_matrix_, 2.1) == 2


def test_two_clusters_unless_told():
    assert HierarchicalAgglomerativeClustering().fit_predict(blobs(30)).max() == 1


def test_cosines_are_exact_in_any_order_of_dimensions():
    x_ND = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    signs_D = np.where(np.arange(64) % 2, 1, -1)
    expected_P = pair_distances(x_ND, "cosine")
    unit_ND = hac._unit_rows(x_ND)
    rows, columns = np.triu_indices(300, 1)
    products_PD = (unit_ND * signs_D)[rows][:, ::-1] * (unit_ND * signs_D)[columns][:, ::-1]
    np.testing.assert_array_equal(np.cumsum(products_PD, axis=1)[:, -1], 1 - expected_P)
    assert expected_P.min() >= 0


def test_identical_rows_and_ties_give_as_many_clusters_as_asked():
    model = HierarchicalAgglomerativeClustering(n_clusters=3)
    for x_ND in (np.ones((7, 2)), np.arange(8.0)[:, None]):
        labels_N = model.fit_predict(x_ND)
        assert sorted(set(labels_N.tolist())) == [0, 1, 2]
        assert labels_N.tolist() == model.fit_predict(x_ND.copy()).tolist()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_one_row_and_none(metric):
    one = HierarchicalAgglomerativeClustering(metric).fit(np.ones((1, 3)))
    assert (one.labels_.tolist(), one.linkage_matrix_.shape) == ([0], (0, 4))
    for threshold in (None, 1.0):
        none = HierarchicalAgglomerativeClustering(metric, distance_threshold=threshold).fit(np.ones((0, 3)))
        assert (none.labels_.tolist(), none.linkage_matrix_.shape) == ([], (0, 4))


def test_rows_of_any_scale_have_a_cosine():
    x_ND = np.array([[1e200, 0], [1e-200, 1e-200], [0, 3.0]])
    np.testing.assert_allclose(pair_distances(x_ND, "cosine"), [1 - 0.5**0.5, 1, 1 - 0.5**0.5], atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from(LINKAGES), st.data())
def test_a_cut_is_a_partition_into_what_was_asked_and_nests(num_rows, seed, linkage, data):
    x_ND = np.random.default_rng(seed).integers(0, 3, (num_rows, 2)).astype(float)  # many ties
    merges_M4 = merge_tree(pair_distances(x_ND, "euclidean"), linkage)
    wanted = data.draw(st.integers(1, num_rows))
    fine_N, coarse_N = cut_tree(merges_M4, wanted), cut_tree(merges_M4, max(1, wanted - 1))
    assert sorted(set(fine_N.tolist())) == list(range(wanted))
    assert fine_N.tolist() == number_by_appearance(fine_N).tolist()
    assert len({(a, b) for a, b in zip(fine_N.tolist(), coarse_N.tolist(), strict=True)}) == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distance_metric": "manhattan"}, "distance_metric must be one of euclidean, cosine, got manhattan"),
        ({"linkage": "median"}, "linkage must be one of average, complete, single, ward, got median"),
        ({"distance_metric": "cosine", "linkage": "ward"}, "linkage ward must be used with distance_metric euclidean"),
        ({"n_clusters": 2, "distance_threshold": 1.0}, "at most one of n_clusters and distance_threshold"),
        ({"n_clusters": 0}, "n_clusters must be at least 1, got 0"),
        ({"distance_threshold": float("nan")}, "distance_threshold must be at least 0, got nan"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HierarchicalAgglomerativeClustering(**arguments)


@pytest.mark.parametrize(
    ("x_ND", "message"),
    [
        (np.ones(3), r"X must be an array of numbers, rows x dimensions, got float64 of shape \(3,\)"),
        (np.array([["a"]]), "X must be an array of numbers"),
        (np.ones((2, 0)), "X must be an array of numbers"),
        (np.array([[0.0], [np.nan]]), "X must be finite, got NaN or infinity in row 1"),
        (np.ones((4, 1)), "n_clusters must be at most the number of rows, got 5 for 4"),
        (np.zeros((30_001, 1)), r"at most 30,000, as it holds all their distances twice \(7.2 GB\), got 30,001"),
    ],
)
def test_rows_are_checked(x_ND, message):
    with pytest.raises(InputError, match=message):
        HierarchicalAgglomerativeClustering(n_clusters=5).fit(x_ND)


def test_a_zero_row_has_no_cosine():
    with pytest.raises(InputError, match="rows must not be zero for cosine distances, got row 1"):
        HierarchicalAgglomerativeClustering("cosine").fit(np.array([[1.0, 0], [0, 0]]))


def test_vehicle_silhouettes(real_data):
    files = sorted((real_data / "vehicle").glob("*.dat"))
    if not files:
        pytest.skip("needs the Vehicle data")
    lines = [line.split() for file in files for line in file.read_text().splitlines() if line.strip()]
    x_ND = np.array([line[:18] for line in lines], dtype=float)
    x_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
    ours = HierarchicalAgglomerativeClustering("euclidean", "ward", n_clusters=4).fit_predict(x_ND)
    theirs = AgglomerativeClustering(4, linkage="ward").fit_predict(x_ND)
    assert ours.tolist() == number_by_appearance(theirs).tolist()
    assert np.bincount(ours).tolist() == [257, 264, 317, 8]
