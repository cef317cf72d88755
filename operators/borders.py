"""Where two clusters touch: which of them are neighbours, and which of their rows can have near ones on both sides.

Legend: N rows, K clusters, D dimensions, B clusters of a block, P pairs.
"""

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 27
_ROUNDOFF = 2.0**-11, 2.0**-25
"""What rounding to float16 changes of a coordinate at most: this share of it, or this much where it is tiny."""

_SLACK = 1e-9  # far more than the rounding errors of a float64 product of rows shorter than 2


def neighbour_pairs(centroids_KD: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Pairs of clusters of which one is among the `count` nearest others of the other.

    Decided by centroids rounded to float16, whose float64 products are exact; ties go to the lowest cluster.

    Args:
        centroids_KD: float64, no longer than 1.
        count: neighbours of each cluster; all others where there are fewer.

    Returns:
        pair_P2: int64, the lower cluster first, ascending, each pair once.
    """
    num_clusters = len(centroids_KD)
    count = min(count, num_clusters - 1)
    if count < 1:
        return np.zeros((0, 2), np.int64)
    rounded_KD = centroids_KD.astype(np.float16).astype(np.float64)
    rows = max(1, _BLOCK_BYTES // (8 * num_clusters))
    pairs = []
    for start in range(0, num_clusters, rows):
        dot_BK = rounded_KD[start : start + rows] @ rounded_KD.T
        block_B = np.arange(len(dot_BK))
        dot_BK[block_B, start + block_B] = -np.inf
        least_B = np.partition(dot_BK, num_clusters - count, axis=1)[:, num_clusters - count]
        for row in block_B:
            near_M = np.flatnonzero(dot_BK[row] >= least_B[row])
            nearest_M = near_M[np.argsort(-dot_BK[row, near_M], kind="stable")][:count]
            pairs.append(np.sort(np.stack([np.full(count, start + row), nearest_M], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def near_border(
    x_ND: NDArray[np.float16], own_D: NDArray[np.float64], other_D: NDArray[np.float64], epsilon: float
) -> NDArray[np.bool_]:
    """Rows of one cluster that may be within epsilon of some row of another; all that are left out are not.

    Let a and b be the centroids, x a row of a's cluster and y one of b's, each with its own centroid as the nearest.
    Then <x, a - b> >= 0 >= <y, a - b>, hence <x, a - b> <= <x - y, a - b> <= |x - y| |a - b|. And a pair whose
    product exceeds 1 - epsilon has |x - y|^2 < 2 r^2 - 2 + 2 epsilon, where r bounds the length of a stored row. So x
    has to lie that near to the plane between the centroids.

    Args:
        x_ND: float16 stored rows, assigned to `own_D` by dot product.
        own_D: float64, centroid of the rows' cluster.
        other_D: float64, centroid of the other cluster.
        epsilon: the largest that counts.
    """
    apart_D = own_D - other_D
    longest = 1 + _ROUNDOFF[0] + math.sqrt(x_ND.shape[1]) * _ROUNDOFF[1]
    furthest = math.sqrt(2 * longest**2 - 2 + 2 * epsilon)
    near_N: NDArray[np.bool_] = x_ND.astype(np.float64) @ apart_D <= furthest * np.linalg.norm(apart_D) + _SLACK
    return near_N
