"""Hierarchical k-means with balanced resampling: each level clusters the centroids of the level below.

Plain k-means spends its centroids where samples are dense. The centroids of one level, clustered again, are spread more
evenly, and so on upwards. Resampling goes further: of each cluster only the rows nearest to its centroid are kept, the
same number of each; k-means runs anew on that balanced set; then all rows are assigned to the new centroids. A few
rounds of it, and the centroids lie almost evenly over the space that the samples fill.

Upper levels have as many rows as the level below has clusters, so one process does them. The rows of a level are the
centroids below as they would be stored: unit rows rounded to float16. So every comparison is certified, every sum is
exact, and a hierarchy is the same bytes for any number of threads. `pipeline.hierarchy` does the lowest level, that of
the samples.

Vo et al. 2024, arXiv 2405.15613. Deviation: spherical, as everything here.

Legend: N rows of a level, K clusters of it, D dimensions, M rows that are resampled.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.certified import assign
from operators.embeddings import to_unit_float16
from operators.hashing import generator
from operators.kmeans import Part, initial_keys, lowest_keys, repair_empty, unit_rows, update_centroids

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effort:
    """How hard to try at one level.

    Attributes:
        iterations: updates of the centroids of one k-means at most.
        rounds: of resampling.
        points: rows of each cluster that a round keeps; None for half of the average cluster.
    """

    iterations: int
    rounds: int
    points: int | None = None


def cluster_level(
    below_ND: Floats, k: int, effort: Effort, *, seed: int, threads: int = 1
) -> tuple[Floats, NDArray[np.int32]]:
    """Clusters the centroids of the level below.

    Args:
        below_ND: float64 unit rows.
        k: clusters of this level, from 1 to N.
        effort: of k-means and resampling.
        seed: of this level.
        threads: the answer does not depend on it.

    Returns:
        centroids_KD: float64 unit rows on the 2^-28 grid.
        parent_N: int32, the cluster of each row.
    """
    assert 1 <= k <= len(below_ND), (k, len(below_ND))
    x_ND, _ = to_unit_float16(below_ND)
    centroids_KD = _fit(x_ND, np.arange(len(x_ND)), k, effort.iterations, seed, threads)
    for number in range(effort.rounds):
        parent_N, similarity_N = assign(x_ND, centroids_KD, threads=threads)
        chosen_M = nearest_members(parent_N, similarity_N, points_to_keep(len(x_ND), k, effort.points))
        if len(chosen_M) < k:  # so few rows to a cluster that balancing them leaves too few to cluster
            break
        again = derived_seed(seed, "round", str(number))
        centroids_KD = _fit(x_ND[chosen_M], chosen_M, k, effort.iterations, again, threads)
    return centroids_KD, assign(x_ND, centroids_KD, threads=threads)[0]


def nearest_members(cluster_N: NDArray[np.int32], similarity_N: Floats, points: int) -> NDArray[np.int64]:
    """Rows of the `points` members of each cluster that are most similar to its centroid, ties to the lowest row.

    Returns:
        row_M: int64, ascending.
    """
    order_N = np.lexsort((np.arange(len(cluster_N)), -similarity_N, cluster_N))
    sorted_N = cluster_N[order_N]
    rank_N = np.arange(len(order_N)) - np.searchsorted(sorted_N, sorted_N)
    return np.sort(order_N[rank_N < points])


def points_to_keep(num_rows: int, k: int, points: int | None) -> int:
    """Rows of each cluster that a round of resampling keeps: those asked for, or half of the average cluster."""
    return points or max(1, num_rows // (2 * k))


def derived_seed(seed: int, *labels: str) -> int:
    """A seed of its own for each level and round, lest each k-means start from much the same rows."""
    return int(generator(seed, *labels).integers(2**63))


def _fit(
    x_ND: NDArray[np.float16], id_N: NDArray[np.int64], k: int, iterations: int, seed: int, threads: int
) -> Floats:
    """Spherical k-means in one process, from the rows with the lowest keyed hash of their id."""
    keys_N3 = initial_keys(np.zeros(len(id_N), np.uint64), id_N.astype(np.uint64), seed)
    centroids_KD = unit_rows(x_ND[lowest_keys(keys_N3, k)])
    part = Part(x_ND, threads=threads)
    for _ in range(iterations):
        sums_KD, counts_K = part.step(centroids_KD)
        next_KD = repair_empty(update_centroids(sums_KD, counts_K, centroids_KD), counts_K)
        if np.array_equal(next_KD, centroids_KD):
            break
        centroids_KD = next_KD
    return centroids_KD
