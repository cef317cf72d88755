"""Concepts: clusters that k-means made too fine, merged bottom up by how near their centroids are.

Many micro-clusters followed by a merge find groups that are not round, and as many as there are, where k-means with few
centroids cuts large groups into pieces and lumps small ones together. A concept is then a cluster like any other: its
rows are those of its micro-clusters, its centroid is the unit vector along the exact sum of its rows, and a row's
similarity is its exact cosine to that. So densities, quotas and ranks need not know that there was a merge.

Every micro-cluster counts as one in the merge, whatever its size.

Legend: N rows, K micro-clusters, C concepts, D dimensions, M merges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.certified import nearest, similarities
from operators.errors import InputError
from operators.hac import Linkage, check_num_rows, clusters_beyond, cut_tree, merge_tree, pair_distances
from operators.kmeans import Sums, summed_similarity, update_centroids
from operators.screen import Columns, measure_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Concepts:
    """Merged clusters.

    Attributes:
        concept_K: int32, the concept of each micro-cluster; numbered by their first micro-cluster.
        merges_M4: float64, the whole tree over the micro-clusters, in scipy's form (`operators.hac.merge_tree`).
        centroids_CD: float64 unit rows on the 2^-28 grid.
        sizes_C: int64, rows.
        similarity_C: float64, summed cosine of the rows to their concept's centroid.
    """

    concept_K: NDArray[np.int32]
    merges_M4: Floats
    centroids_CD: Floats
    sizes_C: NDArray[np.int64]
    similarity_C: Floats


def merge_clusters(
    centroids_KD: Floats, rows: Sums, linkage: Linkage, *, to: int | None = None, distance: float | None = None
) -> Concepts:
    """Merges the clusters of a k-means fit.

    Args:
        centroids_KD: float64, K >= 1.
        rows: the exact sums and the numbers of the rows that are nearest to each centroid.
        linkage: distance of two concepts from those of their centroids: 1 - cos, or for `ward` the Euclidean distance
            of the unit centroids, the square root of 2 (1 - cos).
        to: how many concepts to stop at.
        distance: merge only what is nearer than this, where `to` is not given.

    Raises:
        InputError: `to` exceeds the clusters, or the clusters exceed what a hierarchical clustering can hold.
    """
    check_merge(len(centroids_KD), to)
    distance_P = pair_distances(centroids_KD, "cosine")
    if linkage == "ward":  # in place: scipy makes a copy already, and a third one would take half as much again
        np.sqrt(np.multiply(distance_P, 2.0, out=distance_P), out=distance_P)
    merges_M4 = merge_tree(distance_P, linkage)
    wanted = to if to is not None else clusters_beyond(merges_M4, distance or 0.0)
    concept_K = cut_tree(merges_M4, wanted)
    return Concepts(concept_K.astype(np.int32), merges_M4, *_join(centroids_KD, rows, concept_K))


def check_merge(num_clusters: int, to: int | None) -> None:
    """Refuses what `merge_clusters` cannot do. Raises InputError."""
    check_num_rows(num_clusters)
    if to is not None and to > num_clusters:
        raise InputError(f"merge.to must be at most the number of clusters, got {to} for {num_clusters}")


def assign_concepts(
    x_ND: NDArray[np.float16], micro: Columns, concept_K: NDArray[np.int32], concepts: Columns, *, threads: int = 1
) -> tuple[NDArray[np.int32], Floats]:
    """The concept of each row: that of the micro-cluster whose centroid is nearest.

    Args:
        x_ND: float16 unit rows.
        micro: the centroids of the micro-clusters, prepared (`operators.screen`).
        concept_K: int32, the concept of each.
        concepts: the centroids of the concepts, prepared.
        threads: the answer does not depend on it.

    Returns:
        concept_N: int32.
        similarity_N: float64 in [-1, 1], the exact cosine to the concept's centroid.
    """
    rows = measure_rows(x_ND, threads=threads)
    concept_N = concept_K[nearest(rows, micro, threads=threads)]
    return concept_N, similarities(rows, concepts, concept_N, threads=threads).clip(-1.0, 1.0)


def _join(centroids_KD: Floats, rows: Sums, concept_K: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Centroids, sizes and summed similarity of the concepts; the sums of rows are exact, so their order is free."""
    sums_KD, counts_K = rows
    _, first_C = np.unique(concept_K, return_index=True)
    sums_CD = np.zeros((len(first_C), centroids_KD.shape[1]))
    sizes_C = np.zeros(len(first_C), dtype=np.int64)
    np.add.at(sums_CD, concept_K, sums_KD)
    np.add.at(sizes_C, concept_K, counts_K)
    centroids_CD = update_centroids(sums_CD, sizes_C, centroids_KD[first_C])
    return centroids_CD, sizes_C, summed_similarity(sums_CD, centroids_CD)
