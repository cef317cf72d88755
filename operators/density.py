"""How dense a cluster is and how far it lies from the others: what density-based pruning gives its quotas by.

Abbas et al. 2024, arXiv 2401.04578: complexity C_j = d_intra(j) * d_inter(j), probabilities softmax(C / temperature).

The quotas are decisions, so every float here is the same on every machine: sums add in a fixed order (BLAS and einsum
do not), and `exp` is made of additions and multiplications, which IEEE 754 rounds in one way only (the C library's
and numpy's vector units' differ in the last bit from one processor to the next). Float32 products only choose which
neighbours are worth computing.

Legend: N samples, K clusters, D dimensions, B clusters of a block, M candidate neighbours, L nearest neighbours.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError
from operators.exact import ordered_sum

Floats = NDArray[np.float64]

Density = Literal["dintra*dinter", "uniform", "clustersize"]

SPARE_CANDIDATES = 16
BLOCK_BYTES = 1 << 26


def intra_distances(similarity_K: Floats, sizes_K: NDArray[np.int64]) -> Floats:
    """d_intra: the mean of 1 - cos(member, its centroid), from the exact sums of the members: 1 - <S_j, c_j> / n_j.

    Args:
        similarity_K: float64, <S_j, c_j>, the summed cosine of each cluster (`operators.kmeans.summed_similarity`).
        sizes_K: int64, members of each cluster.

    Returns:
        d_intra_K: float64 in [0, 2]; 0 for a cluster without members.
    """
    means_K = similarity_K / np.maximum(sizes_K, 1)
    return np.where(sizes_K > 0, np.clip(1.0 - means_K, 0.0, 2.0), 0.0)


def inter_distances(centroids_KD: Floats, num_neighbours: int = 20) -> Floats:
    """d_inter: the mean of 1 - cos(centroid, other centroid) over its nearest other centroids.

    A float32 product ranks the candidates; the best of them are computed in float64. Where the float32 error bound
    leaves room for one that was passed over, all that are within the bound are computed.

    Args:
        centroids_KD: float64, unit rows, K >= 1.
        num_neighbours: the paper's l, at least 1; the K - 1 others where there are fewer.

    Returns:
        d_inter_K: float64 in [0, 2]. A single cluster has no neighbour; its d_inter is 1, which leaves d_intra alone.

    Raises:
        ConfigError: `num_neighbours` is below 1.

    Notes:
        arXiv 2401.04578, where l = 20. The reference code gives infinity when there are fewer than l other centroids.
    """
    if num_neighbours < 1:
        raise ConfigError(f"num_neighbours must be at least 1, got {num_neighbours}")
    num_clusters, num_dims = centroids_KD.shape
    if num_clusters == 1:
        return np.ones(1)
    num_nearest = min(num_neighbours, num_clusters - 1)
    num_candidates = min(num_nearest + SPARE_CANDIDATES, num_clusters - 1)
    block_rows = max(1, BLOCK_BYTES // (8 * max(num_clusters, num_candidates * num_dims)))
    screen_KD = centroids_KD.astype(np.float32)

    nearest_KL = np.empty((num_clusters, num_nearest))
    for start in range(0, num_clusters, block_rows):
        rows_B = np.arange(start, min(start + block_rows, num_clusters))
        nearest_KL[rows_B] = _nearest_cosines(centroids_KD, screen_KD, rows_B, (num_nearest, num_candidates))
    d_inter_K: Floats = _sum_columns(1.0 - np.clip(nearest_KL, -1.0, 1.0)) / num_nearest
    return d_inter_K


def densities(density: Density, d_intra_K: Floats, d_inter_K: Floats, sizes_K: NDArray[np.int64]) -> Floats:
    """What the softmax is taken of, float64 from 0 to 4.

    `dintra*dinter` is the paper's complexity. `uniform` treats clusters alike. `clustersize` is the size relative to
    the largest cluster: raw counts would saturate the softmax, and shares of the whole would depend on K.
    """
    match density:
        case "dintra*dinter":
            return d_intra_K * d_inter_K
        case "uniform":
            return np.ones(sizes_K.size)
        case "clustersize":
            return sizes_K / max(1, int(sizes_K.max(initial=0)))
    raise ConfigError(f"density must be dintra*dinter, uniform or clustersize, got {density}")


def softmax(densities_K: Floats, temperature: float, sizes_K: NDArray[np.int64]) -> Floats:
    """The share of each non-empty cluster: softmax of density / temperature; 0 for clusters without members.

    Args:
        densities_K: float64, finite.
        temperature: above 0. The paper's is 0.1; large ones flatten the shares.
        sizes_K: int64, members of each cluster.

    Returns:
        probabilities_K: float64, summing to 1 (all 0 when every cluster is empty).
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, got {temperature}")
    filled_K = sizes_K > 0
    if not filled_K.any():
        return np.zeros(sizes_K.size)
    weights_K = np.where(filled_K, exp(np.minimum(densities_K - densities_K[filled_K].max(), 0.0) / temperature), 0.0)
    return weights_K / math.fsum(weights_K.tolist())


def exp(x_N: Floats) -> Floats:
    """E to the power of x for x <= 0, within 2 units in the last place, the same bits on every machine.

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series (the first term left out is below 2^-57), times 2^n.
    """
    x_N = np.maximum(x_N, -745.0)  # below it, e^x is 0 in float64
    n_N = np.rint(x_N * _INVERSE_LN2)
    r_N = (x_N - n_N * _LN2_HIGH) - n_N * _LN2_LOW
    series_N = np.ones_like(r_N)
    for i in range(13, 0, -1):
        series_N = series_N * r_N / i + 1.0
    return np.ldexp(series_N, n_N.astype(np.int32))


_INVERSE_LN2 = 1.4426950408889634
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # 33 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")


def _nearest_cosines(
    centroids_KD: Floats, screen_KD: NDArray[np.float32], rows_B: NDArray[np.int64], counts: tuple[int, int]
) -> Floats:
    """Cosines_BL of each row's L nearest other centroids, in falling order."""
    num_nearest, num_candidates = counts
    screen_BK = screen_KD[rows_B] @ screen_KD.T
    screen_BK[np.arange(rows_B.size), rows_B] = -np.inf
    candidates_BM = np.argpartition(-screen_BK, num_candidates - 1, axis=1)[:, :num_candidates]
    worst_B = np.take_along_axis(screen_BK, candidates_BM, axis=1).min(axis=1)

    cosines_BM = _dot_rows(centroids_KD[rows_B, None, :], centroids_KD[candidates_BM])
    nearest_BL = -np.sort(-cosines_BM, axis=1)[:, :num_nearest]
    if num_candidates == centroids_KD.shape[0] - 1:
        return nearest_BL

    error = _screen_error(centroids_KD.shape[1])
    for i in np.flatnonzero(worst_B + error > nearest_BL[:, -1]):
        others = np.flatnonzero(screen_BK[i] >= nearest_BL[i, -1] - error)
        cosines = _dot_rows(centroids_KD[rows_B[i], None], centroids_KD[others])
        nearest_BL[i] = -np.sort(-cosines)[:num_nearest]
    return nearest_BL


def _screen_error(num_dims: int) -> float:
    """Bound on |float32 dot product - true one| of unit rows, in any order: D + 2 roundings of 2^-24 each, and slack.

    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    return (num_dims + 8) * 2.0**-24 * 1.01


def _dot_rows(a_xD: Floats, b_xD: Floats) -> Floats:
    """Dot products along the last axis, in float64 and a fixed order."""
    return _sum_columns(a_xD * b_xD)


def _sum_columns(x_xD: Floats) -> Floats:
    """The sum along the last axis, in a fixed order."""
    sums_x: Floats = ordered_sum(x_xD.reshape(-1, x_xD.shape[-1])).reshape(x_xD.shape[:-1])
    return sums_x
