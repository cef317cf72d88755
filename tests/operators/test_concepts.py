"""Merging clusters into concepts. Legend: N rows, K micro-clusters, C concepts, D dimensions."""

import tracemalloc

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from operators.certified import assign
from operators.concepts import assign_concepts, merge_clusters
from operators.errors import InputError
from operators.hac import number_by_appearance
from operators.kmeans import partial_sums, unit_rows
from operators.screen import prepare_columns


def unit_rows16(num_rows: int, dims: int = 12, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    x_ND = generator.standard_normal((6, dims))[generator.integers(0, 6, num_rows)]
    x_ND = x_ND + 0.4 * generator.standard_normal((num_rows, dims))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def fitted():
    x_ND = unit_rows16(900)
    centroids_KD = unit_rows(x_ND[:40])
    cluster_N, _ = assign(x_ND, centroids_KD)
    return x_ND, centroids_KD, cluster_N, partial_sums(x_ND, cluster_N, 40)


def test_by_hand():
    centroids_KD = unit_rows(np.array([[1.0, 0], [0, 1], [1, 0.1]]))
    sums_KD = np.array([[3.0, 0], [0, 5.0], [1.0, 4.0]])
    concepts = merge_clusters(centroids_KD, (sums_KD, np.array([3, 5, 5])), "average", to=2)
    assert concepts.concept_K.tolist() == [0, 1, 0]
    assert concepts.sizes_C.tolist() == [8, 5]
    np.testing.assert_allclose(concepts.centroids_CD, [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-8)
    np.testing.assert_allclose(concepts.similarity_C, [8 * 0.5**0.5, 5], atol=1e-7)


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
def test_groups_equal_scikit_learn(fitted, linkage):
    _, centroids_KD, _, rows = fitted
    metric = "euclidean" if linkage == "ward" else "cosine"
    theirs = AgglomerativeClustering(7, metric=metric, linkage=linkage).fit_predict(centroids_KD)
    ours = merge_clusters(centroids_KD, rows, linkage, to=7)
    assert ours.concept_K.tolist() == number_by_appearance(theirs).tolist()
    assert ours.merges_M4.shape == (39, 4)
    by_distance = merge_clusters(centroids_KD, rows, linkage, distance=float(ours.merges_M4[33, 2]))
    assert by_distance.concept_K.tolist() == ours.concept_K.tolist()  # the 34th merge joins 7 into 6


def test_ward_holds_no_more_than_the_others():
    centroids_KD = unit_rows(unit_rows16(500))
    rows = np.zeros_like(centroids_KD), np.ones(500, dtype=np.int64)
    peaks = []
    for linkage in ("average", "average", "ward"):  # the first imports scipy
        tracemalloc.start()
        merge_clusters(centroids_KD, rows, linkage, to=7)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 8 * 500**2 < peaks[2] < 1.05 * peaks[1]


def test_a_concept_is_what_its_rows_say(fitted):
    x_ND, centroids_KD, cluster_N, rows = fitted
    concepts = merge_clusters(centroids_KD, rows, "average", to=6)
    concept_N = concepts.concept_K[cluster_N]
    sums_CD, sizes_C = partial_sums(x_ND, concept_N, 6)
    np.testing.assert_array_equal(concepts.sizes_C, sizes_C)
    np.testing.assert_array_equal(concepts.centroids_CD, unit_rows(sums_CD))
    again_N, similarity_N = assign_concepts(
        x_ND, prepare_columns(centroids_KD), concepts.concept_K, prepare_columns(concepts.centroids_CD), threads=2
    )
    assert again_N.tolist() == concept_N.tolist()
    exact_N = [float(a.astype(float) @ b) for a, b in zip(x_ND, concepts.centroids_CD[concept_N], strict=True)]
    assert similarity_N.tolist() == np.clip(exact_N, -1, 1).tolist()
    np.testing.assert_allclose(concepts.similarity_C, np.bincount(concept_N, similarity_N), rtol=1e-5)


def test_as_many_concepts_as_clusters_change_nothing(fitted):
    _, centroids_KD, _, rows = fitted
    concepts = merge_clusters(centroids_KD, rows, "average", to=40)
    assert concepts.concept_K.tolist() == list(range(40))
    np.testing.assert_array_equal(concepts.sizes_C, rows[1])
    assert merge_clusters(centroids_KD, rows, "average", to=1).sizes_C.tolist() == [900]
    assert merge_clusters(centroids_KD, rows, "average", distance=3.0).sizes_C.tolist() == [900]


def test_concepts_without_rows_keep_a_direction():
    centroids_KD = unit_rows(np.array([[1.0, 0], [0, 1]]))
    concepts = merge_clusters(centroids_KD, (np.array([[2.0, 0], [0, 0]]), np.array([2, 0])), "average", to=2)
    assert concepts.sizes_C.tolist() == [2, 0]
    assert concepts.centroids_CD.tolist() == [[1, 0], [0, 1]]
    one = merge_clusters(centroids_KD[:1], (np.array([[2.0, 0]]), np.array([2])), "single", to=1)
    assert (one.concept_K.tolist(), one.merges_M4.shape) == ([0], (0, 4))


def test_more_concepts_than_clusters(fitted):
    with pytest.raises(InputError, match=r"merge.to must be at most the number of clusters, got 41 for 40"):
        merge_clusters(fitted[1], fitted[3], "average", to=41)
