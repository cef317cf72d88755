"""K-means: what one worker does with its rows, and how the parts are joined. `pipeline.kmeans` spreads it.

Legend: N rows of one worker, M some of them, K clusters, D dimensions.

Every step is exact or has one fixed order of operations, so the centroids are the same bytes for any number of workers
and threads and any order of the rows:

- assignments are certified (`operators.certified`);
- sums of rows are float64, and rows are multiples of 2^-24 no larger than 1, so sums of fewer than 2^29 rows are exact;
- norms and inertia are summed by `ordered_sum`, and centroids are rounded to the 2^-28 grid;
- the first centroids are the rows with the lowest keyed hash of their uid.

Both metrics maximise one number, the similarity of a row x to a centroid c:

    s(x, c)  =  <x, c> + o(c),   o(c) = 0 (spherical)  or  (1 - |c|^2) / 2 (Euclidean)

Spherical centroids are unit vectors along their sums, and s is the cosine. Euclidean centroids are plain means; with
|x| = 1, as rows are stored, 1 - s is half the squared distance |x - c|^2. For a centroid of unit length the two agree,
so what is made of similarities (distances, densities, inertia) means the same under both.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.certified import nearest
from operators.exact import ordered_sum, round_to_grid
from operators.hashing import keyed_hash
from operators.screen import Rows, as_tensor, measure_rows, one_torch_thread, prepare_columns

MAX_ROWS = 2**28
"""Most rows of one clustering, all workers together: `Part` adds a row before it takes it away elsewhere, so partial
sums may run to twice the rows, and float64 holds sums of 2^29."""

_SPLIT = 2.0**-10
"""How far the halves of a split cluster are moved apart, relative to each coordinate (faiss takes 1/1024 as well)."""

_OFFSET_BITS = 52  # as products of rows and centroids have: sums below 2 are then exact

_BLOCK = 512  # rows converted to float64 at a time: 2 MB at D = 512

Metric = Literal["spherical", "euclidean"]

Sums = tuple[NDArray[np.float64], NDArray[np.int64]]
"""sums_KD (the exact sum of each cluster's rows) and counts_K (how many they are)."""

Find = Callable[[Rows], NDArray[np.int32]]
"""Gives the centroid of each row."""


class Search(Protocol):
    """A way to find each row's centroid, prepared for some centroids."""

    def __call__(self, centroids_KD: NDArray[np.float64], metric: Metric, *, threads: int, device: str) -> Find:
        """Prepares the search."""


class Part:
    """One worker's rows, with what it remembers from the last step.

    `step` is a function of the rows and the centroids alone. What it remembers only saves time: between two steps few
    rows change cluster, and as sums are exact, moving those rows gives the same bytes as summing anew. So a worker that
    was lost and loaded its rows again needs nothing from before.
    """

    def __init__(
        self,
        x_ND: NDArray[np.float16],
        metric: Metric = "spherical",
        *,
        threads: int = 1,
        device: str = "cpu",
        search: Search | None = None,
    ) -> None:
        """Shares x_ND on the CPU, and adds 12 bytes a row to it.

        Args:
            x_ND: float16 unit rows.
            metric: of the clustering.
            threads: the answer does not depend on it.
            device: where rows are screened; the answer does not depend on it.
            search: how rows find their centroids; `exact_search` unless given.
        """
        self.rows = measure_rows(x_ND, threads=threads, device=device)
        self._metric: Metric = metric
        self._threads = threads
        self._search = search or exact_search
        self._cluster_N: NDArray[np.int32] | None = None
        self._sums_KD = torch.empty(0)

    def step(self, centroids_KD: NDArray[np.float64]) -> Sums:
        """Assigns every row to its nearest centroid and sums each cluster.

        Args:
            centroids_KD: float64 on the grid, K >= 1.
        """
        find = self._search(centroids_KD, self._metric, threads=self._threads, device=str(self.rows.x_ND.device))
        cluster_N, before_N = find(self.rows), self._cluster_N
        moved_M = np.flatnonzero(cluster_N != before_N) if before_N is not None else np.arange(len(cluster_N))
        if before_N is None or 2 * len(moved_M) >= len(cluster_N) or len(self._sums_KD) != len(centroids_KD):
            self._sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64, device=self.rows.x_ND.device)
            self._add(np.arange(len(cluster_N)), cluster_N, 1)
        else:
            self._add(moved_M, cluster_N[moved_M], 1)
            self._add(moved_M, before_N[moved_M], -1)
        self._cluster_N = cluster_N
        return self._sums_KD.cpu().numpy().copy(), np.bincount(cluster_N, minlength=len(centroids_KD))

    def _add(self, row_M: NDArray[np.int64], cluster_M: NDArray[np.int32], sign: int) -> None:
        _add_rows(self._sums_KD, self.rows.x_ND, row_M, cluster_M, sign=sign, threads=self._threads)


def exact_search(centroids_KD: NDArray[np.float64], metric: Metric, *, threads: int, device: str) -> Find:
    """Compares each row with every centroid (`operators.certified.nearest`)."""
    columns = prepare_columns(centroids_KD, offsets(centroids_KD, metric), device=device)
    return partial(nearest, columns=columns, threads=threads)


def partial_sums(x_ND: NDArray[np.float16], cluster_N: NDArray[np.int32], k: int, *, threads: int = 1) -> Sums:
    """Sums and counts the rows of each cluster, exactly.

    Args:
        x_ND: float16 rows, no coordinate larger than 1.
        cluster_N: int32 in [0, k).
        k: number of clusters.
        threads: the answer does not depend on it.

    Returns:
        sums_KD, float64, and counts_K, int64.
    """
    sums_KD = torch.zeros((k, x_ND.shape[1]), dtype=torch.float64)
    _add_rows(sums_KD, as_tensor(x_ND, "cpu"), np.arange(len(x_ND)), cluster_N, sign=1, threads=threads)
    return sums_KD.numpy(), np.bincount(cluster_N, minlength=k)


def merge_sums(parts: Sequence[Sums]) -> Sums:
    """Adds the sums and the counts of all workers; exact, so their order is free.

    Args:
        parts: at least one, all of the same shape.
    """
    sums_KD, counts_K = parts[0][0].copy(), parts[0][1].copy()
    for more_KD, more_K in parts[1:]:
        sums_KD += more_KD
        counts_K += more_K
    return sums_KD, counts_K


def update_centroids(
    sums_KD: NDArray[np.float64],
    counts_K: NDArray[np.int64],
    previous_KD: NDArray[np.float64],
    metric: Metric = "spherical",
) -> NDArray[np.float64]:
    """The unit vector along each cluster's sum, or its mean, on the grid.

    Clusters that are empty, or sum to zero and so have no direction, stay as they were. Row by row, so any slice of the
    clusters may be updated on its own.
    """
    if metric == "euclidean":
        return np.where((counts_K > 0)[:, None], round_to_grid(sums_KD / np.maximum(counts_K, 1)[:, None]), previous_KD)
    moves_K = (counts_K > 0) & sums_KD.any(axis=1)
    return np.where(moves_K[:, None], unit_rows(sums_KD), previous_KD)


def first_centroids(rows_KD: NDArray[np.float16], metric: Metric) -> NDArray[np.float64]:
    """Stored rows as centroids: scaled to unit length, or as they are."""
    return unit_rows(rows_KD) if metric == "spherical" else rows_KD.astype(np.float64)


def offsets(centroids_KD: NDArray[np.float64], metric: Metric) -> NDArray[np.float64] | None:
    """o(c) of the module's docstring, rounded to a multiple of 2^-52: float64, or None where it is 0 for all."""
    if metric == "spherical":
        return None
    return round_to_grid((1.0 - ordered_sum(centroids_KD * centroids_KD)) / 2, _OFFSET_BITS)


def unit_rows(vectors_KD: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scales rows to unit length and rounds them to the grid, the same bytes on any machine; zero rows stay zero."""
    vectors_KD = vectors_KD.astype(np.float64)
    norm_K = np.sqrt(ordered_sum(vectors_KD * vectors_KD))
    return round_to_grid(vectors_KD / np.where(norm_K > 0, norm_K, 1.0)[:, None])


def repair_empty(
    centroids_KD: NDArray[np.float64], counts_K: NDArray[np.int64], metric: Metric = "spherical"
) -> NDArray[np.float64]:
    """Gives each empty cluster half of the largest one, so that k clusters stay k clusters.

    The largest cluster (the lowest id among equals) and the empty one become copies of its centroid, moved apart by a
    factor of 1 +- 2^-10 on alternate coordinates, and are counted as half the cluster each; then the next empty
    cluster, in order of id. The idea is that of faiss, which draws the cluster to split at random.

    Returns:
        A new array, or `centroids_KD` itself where no cluster is empty.
    """
    empty_E = np.flatnonzero(counts_K == 0)
    if not len(empty_E) or not counts_K.any():
        return centroids_KD
    centroids_KD, counts_K = centroids_KD.copy(), counts_K.copy()
    factor_D = np.where(np.arange(centroids_KD.shape[1]) % 2 == 0, 1 + _SPLIT, 1 - _SPLIT)
    for empty in empty_E:
        largest = counts_K.argmax()
        pair_2D = centroids_KD[largest] * np.stack([factor_D, 2 - factor_D])
        centroids_KD[[empty, largest]] = unit_rows(pair_2D) if metric == "spherical" else round_to_grid(pair_2D)
        counts_K[empty] = counts_K[largest] // 2
        counts_K[largest] -= counts_K[empty]
    return centroids_KD


def summed_similarity(
    sums_KD: NDArray[np.float64],
    centroids_KD: NDArray[np.float64],
    counts_K: NDArray[np.int64] | None = None,
    metric: Metric = "spherical",
) -> NDArray[np.float64]:
    """<S_j, c_j> + n_j o(c_j) for each cluster: the sum of its rows' similarities, without summing any similarity.

    Row by row, in one fixed order. The mean of 1 - s over a cluster's rows is 1 less this over n_j.

    Args:
        sums_KD: exact sums under exactly these centroids.
        centroids_KD: float64 on the grid.
        counts_K: rows of each cluster; needed where there are offsets.
        metric: which offsets.
    """
    similarity_K = ordered_sum(sums_KD * centroids_KD)
    offset_K = offsets(centroids_KD, metric)
    if offset_K is None:
        return similarity_K
    assert counts_K is not None
    return similarity_K + counts_K * offset_K


def inertia(similarity_K: NDArray[np.float64], counts_K: NDArray[np.int64]) -> float:
    """The mean of 1 - s over all rows: of 1 - cos, or of half the squared distance.

    Args:
        similarity_K: `summed_similarity` of all clusters.
        counts_K: rows of each cluster, at least one row in all.
    """
    return float(1.0 - ordered_sum(similarity_K[None])[0] / counts_K.sum())


def initial_keys(high_N: NDArray[np.uint64], low_N: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """What orders rows for the choice of the first centroids.

    Returns:
        key_N3, uint64: keyed hash, high half and low half of each uid.
    """
    return np.stack([keyed_hash(high_N, low_N, seed, "kmeans"), high_N, low_N], axis=1)


def lowest_keys(key_N3: NDArray[np.uint64], k: int) -> NDArray[np.intp]:
    """Positions of the k lowest keys (all of them where there are fewer), lowest first."""
    hash_N = key_N3[:, 0]
    near_M = np.arange(len(hash_N))
    if k < len(hash_N):
        near_M = np.flatnonzero(hash_N <= np.partition(hash_N, k - 1)[k - 1])
    return near_M[np.lexsort(key_N3[near_M].T[::-1])][:k]


def _add_rows(
    sums_KD: Tensor, x_ND: Tensor, row_M: NDArray[np.int64], cluster_M: NDArray[np.int32], *, sign: int, threads: int
) -> None:
    """Adds `sign` times the given rows to their clusters' sums. Each thread owns a range of clusters."""
    order_M = np.argsort(cluster_M, kind="stable")
    row_sorted = torch.from_numpy(row_M[order_M]).to(x_ND.device)
    cluster_sorted = torch.from_numpy(cluster_M[order_M].astype(np.int64)).to(x_ND.device)
    even_cuts = np.linspace(0, len(order_M), threads + 1).astype(np.int64)[1:-1]
    cuts = np.searchsorted(cluster_M[order_M], cluster_M[order_M][even_cuts]) if len(order_M) else even_cuts
    edges = [0, *cuts.tolist(), len(order_M)]

    def add(first: int, last: int) -> None:
        for start in range(first, last, _BLOCK):
            block = slice(start, min(start + _BLOCK, last))
            exact_BD = x_ND[row_sorted[block]].float().double()
            sums_KD.index_add_(0, cluster_sorted[block], exact_BD, alpha=sign)

    with one_torch_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(add, edges[:-1], edges[1:]))
