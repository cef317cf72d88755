"""Hierarchical agglomerative clustering: the two nearest clusters become one, until as many are left as are wanted.

scipy does the merging (the nearest-neighbour chain, or a minimum spanning tree for single linkage: O(N^2) time). It
needs the distance of every pair, and holds it twice: 8 N^2 bytes. So this is for up to some ten thousand rows; larger
sets are clustered by k-means first, and its centroids merged (`operators.concepts`).

Among equally near pairs the one that scipy comes to first is merged. That depends on nothing but the order of the rows.

Legend: N rows, D dimensions, P = N (N - 1) / 2 pairs, M = N - 1 merges, B rows of a block.
"""

from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError, InputError
from operators.exact import ordered_sum, round_to_grid

Floats = NDArray[np.float64]
Metric = Literal["euclidean", "cosine"]
Linkage = Literal["average", "complete", "single", "ward"]

MAX_ROWS = 30_000
"""Its distances take 8 N^2 bytes = 7.2 GB."""

_GRID_BITS = 26
"""Unit rows on the 2^-26 grid: products are multiples of 2^-52, and as their sums stay below 2 they fit the 53 bits of
a float64. So cosines are exact: the same bytes from any library, for any number of threads."""

_BLOCK_ROWS = 256


class HierarchicalAgglomerativeClustering:
    """Clusters the rows of an array bottom up.

        labels = HierarchicalAgglomerativeClustering("cosine", "average", n_clusters=10).fit_predict(X)

    Attributes:
        labels_: int64 of N; clusters are numbered in the order in which the rows first meet them.
        linkage_matrix_: float64 of (N - 1) x 4, in scipy's form: the two clusters of each merge (i < N is row i, N + i
            is what merge i made), its height, and how many rows it joins; the lowest first.

    Notes:
        Muellner 2011, arXiv 1109.2378, describes the algorithms.
    """

    labels_: NDArray[np.int64]
    linkage_matrix_: Floats

    def __init__(
        self,
        distance_metric: Metric = "euclidean",
        linkage: Linkage = "average",
        *,
        n_clusters: int | None = None,
        distance_threshold: float | None = None,
    ) -> None:
        """Checks the settings.

        Args:
            distance_metric: between rows.
            linkage: distance of two clusters: the mean, the largest or the smallest over their pairs of rows, or, for
                `ward`, by how much merging them raises the sum of squared distances to the mean. Ward is Euclidean
                only: cosine distances have no mean for it. For rows of unit length it orders them just as well.
            n_clusters: how many to stop at; 2 where neither this nor `distance_threshold` is given.
            distance_threshold: merge only what is nearer than this.

        Raises:
            ConfigError: a setting is not one of the above, or two of them do not go together.
        """
        _check_choice("distance_metric", distance_metric, get_args(Metric))
        _check_choice("linkage", linkage, get_args(Linkage))
        if linkage == "ward" and distance_metric != "euclidean":
            raise ConfigError(
                "linkage ward must be used with distance_metric euclidean (scale the rows to unit length for angles), "
                f"got {distance_metric}"
            )
        if n_clusters is not None and distance_threshold is not None:
            raise ConfigError(
                "at most one of n_clusters and distance_threshold must be given, "
                f"got n_clusters {n_clusters} and distance_threshold {distance_threshold}"
            )
        if n_clusters is not None and n_clusters < 1:
            raise ConfigError(f"n_clusters must be at least 1, got {n_clusters}")
        if distance_threshold is not None and not distance_threshold >= 0:
            raise ConfigError(f"distance_threshold must be at least 0, got {distance_threshold}")
        self.distance_metric: Metric = distance_metric
        self.linkage: Linkage = linkage
        self.n_clusters = n_clusters
        self.distance_threshold = distance_threshold

    def fit(self, X: NDArray[np.floating] | NDArray[np.integer]) -> Self:
        """Merges the rows of X.

        Args:
            X: N x D, finite; no zero row for cosine distances, which have no direction.

        Raises:
            InputError: X is not such an array, has fewer rows than clusters, or more than `MAX_ROWS`.
        """
        x_ND = _checked_rows(np.asarray(X))
        if self.n_clusters is not None and self.n_clusters > len(x_ND):
            raise InputError(f"n_clusters must be at most the number of rows, got {self.n_clusters} for {len(x_ND)}")
        self.linkage_matrix_ = merge_tree(pair_distances(x_ND, self.distance_metric), self.linkage)
        if self.distance_threshold is not None:
            wanted = clusters_beyond(self.linkage_matrix_, self.distance_threshold)
        else:
            wanted = self.n_clusters or (2 if len(x_ND) > 1 else 1)
        self.labels_ = cut_tree(self.linkage_matrix_, wanted)[: len(x_ND)]
        return self

    def fit_predict(self, X: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.int64]:
        """The label of each row of X; see `fit`."""
        return self.fit(X).labels_


def pair_distances(x_ND: NDArray[np.floating], metric: Metric) -> Floats:
    """The distance of every pair of rows, in scipy's condensed order: (0, 1), (0, 2), ..., (1, 2), ...

    Args:
        x_ND: finite; for `cosine` (1 - cos, from 0 to 2) without zero rows.
        metric: Cosines are exact for the rows scaled to unit length and rounded to multiples of 2^-26.

    Raises:
        InputError: a zero row has no cosine, or there are more rows than `MAX_ROWS`.
    """
    check_num_rows(len(x_ND))
    if metric == "euclidean":
        from scipy.spatial.distance import pdist

        return np.asarray(pdist(x_ND.astype(np.float64)), dtype=np.float64)
    unit_ND = _unit_rows(x_ND)
    distance_P = np.empty(len(x_ND) * (len(x_ND) - 1) // 2)
    end = 0
    for start in range(0, len(unit_ND), _BLOCK_ROWS):
        cosine_BN = unit_ND[start : start + _BLOCK_ROWS] @ unit_ND[start:].T
        for row, cosine_N in enumerate(cosine_BN):
            others = cosine_N[row + 1 :]
            np.subtract(1.0, others, out=distance_P[end : end + len(others)])
            end += len(others)
    return distance_P.clip(0.0, 2.0, out=distance_P)


def merge_tree(distance_P: Floats, linkage: Linkage) -> Floats:
    """All merges, down to one cluster.

    Args:
        distance_P: condensed distances; Euclidean ones for `ward`.
        linkage: see `HierarchicalAgglomerativeClustering`.

    Returns:
        merges_M4: scipy's linkage matrix, float64, the heights rising; without rows where there is no pair.
    """
    if not len(distance_P):
        return np.empty((0, 4))
    from scipy.cluster.hierarchy import linkage as scipy_linkage

    return np.asarray(scipy_linkage(distance_P, linkage), dtype=np.float64)


def clusters_beyond(merges_M4: Floats, distance: float) -> int:
    """How many clusters are left when only what is nearer than `distance` is merged."""
    return int(np.count_nonzero(merges_M4[:, 2] >= distance)) + 1


def cut_tree(merges_M4: Floats, num_clusters: int) -> NDArray[np.int64]:
    """The cluster of each row after all but the last `num_clusters` - 1 merges, exactly that many also among ties.

    Args:
        merges_M4: from `merge_tree`.
        num_clusters: from 1 to N.

    Returns:
        label_N: int64, clusters numbered by their first row.
    """
    num_rows = len(merges_M4) + 1
    made = num_rows - num_clusters
    parent = np.arange(num_rows + made)
    for i in range(made - 1, -1, -1):  # from the top, so that a merge knows its cluster before its two sides ask
        parent[merges_M4[i, :2].astype(np.int64)] = parent[num_rows + i]
    return number_by_appearance(parent[:num_rows])


def number_by_appearance(label_N: NDArray[np.integer]) -> NDArray[np.int64]:
    """The same groups, numbered from 0 in the order in which they first appear."""
    _, first_C, group_N = np.unique(label_N, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_C))[group_N]


def check_num_rows(num_rows: int) -> None:
    """Refuses what would not fit the memory. Raises InputError."""
    if num_rows > MAX_ROWS:
        raise InputError(
            f"rows of a hierarchical clustering must be at most {MAX_ROWS:,}, as it holds all their distances twice "
            f"({8 * MAX_ROWS**2 / 1e9:.1f} GB), got {num_rows:,} ({8 * num_rows**2 / 1e9:.1f} GB): cluster them with "
            "k-means first and merge its centroids"
        )


def _unit_rows(x_ND: NDArray[np.floating]) -> Floats:
    largest_N = np.abs(x_ND).max(axis=1, initial=0.0).astype(np.float64)
    if not largest_N.all():
        raise InputError(f"rows must not be zero for cosine distances, got row {int(np.argmin(largest_N))}")
    scaled_ND = x_ND / largest_N[:, None]  # squares can then neither overflow nor all vanish
    return round_to_grid(scaled_ND / np.sqrt(ordered_sum(scaled_ND * scaled_ND))[:, None], _GRID_BITS)


def _checked_rows(x_ND: NDArray[np.generic]) -> Floats:
    if x_ND.ndim != 2 or x_ND.dtype.kind not in "fiu" or not x_ND.shape[1]:
        raise InputError(f"X must be an array of numbers, rows x dimensions, got {x_ND.dtype} of shape {x_ND.shape}")
    check_num_rows(len(x_ND))
    rows_ND = x_ND.astype(np.float64)
    if len(bad := np.flatnonzero(~np.isfinite(rows_ND).all(axis=1))):
        raise InputError(f"X must be finite, got NaN or infinity in row {bad[0]}")
    return rows_ND


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value}")
