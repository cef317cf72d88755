"""Spherical k-means spread over Ray actors; the arithmetic is in `operators.kmeans`.

Each actor holds its part of the embeddings. In an iteration the driver puts the centroids into the object store; every
actor assigns its rows and answers with exact sums, cut into slices of clusters; one task for each slice joins the sums
of all actors and updates its centroids. So no process holds more than one actor's rows, or all actors' sums for one
slice. The driver sees centroids, and a count and a sum for each cluster.

A lost actor starts again, loads its rows and repeats its last step, which depends on nothing but the rows and the
centroids: a loss costs one iteration of one worker and changes no byte of the answer.

Legend: N rows of one actor, K clusters, D dimensions, S clusters of one slice.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from operators.errors import InputError
from operators.kmeans import (
    MAX_ROWS,
    Part,
    Sums,
    inertia,
    initial_keys,
    lowest_keys,
    merge_sums,
    repair_empty,
    summed_similarity,
    unit_rows,
    update_centroids,
)
from pipeline.clustering import KMeansFit, KMeansSettings

Loaded = tuple[NDArray[np.float16], NDArray[np.uint64], NDArray[np.uint64]]
"""x_ND (unit rows) and the high and low halves of their uids."""
Loader = Callable[[], Loaded]

_SLICE_BYTES = 64 * 2**20
_RESTARTS = 20


def fit(
    loaders: Sequence[Loader],
    settings: KMeansSettings,
    *,
    seed: int,
    threads: int,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> KMeansFit:
    """Clusters the rows of all loaders; the same bytes for any number and order of loaders, threads and devices.

    Args:
        loaders: one for each actor, picklable, called in the actor, and again if the actor is lost.
        settings: how to cluster.
        seed: of the choice of the first centroids.
        threads: of each actor. All actors run at once, so the cluster needs len(loaders) x threads CPUs.
        device: where the actors screen; each takes one GPU where this is not `cpu`.
        progress: called with the number of updates made so far and the inertia.

    Raises:
        InputError: more clusters than rows, or more rows than exact sums can hold.
    """
    options = {"num_cpus": threads, "num_gpus": int(device != "cpu"), "max_restarts": _RESTARTS}
    actor = ray.remote(_Worker).options(max_task_retries=_RESTARTS, **options)
    workers = [actor.remote(loader, threads, device) for loader in loaders]
    try:
        centroids_KD = _initial(workers, settings.clusters, seed)
        history: list[float] = []
        repaired = False
        while True:
            counts_K, similarity_K, updated_KD = _iterate(workers, centroids_KD)
            history.append(inertia(similarity_K, counts_K))
            updates = len(history) - 1
            if progress:
                progress(updates, history[-1])
            next_KD = repair_empty(updated_KD, counts_K)
            settled = not repaired and updates > 0 and history[-2] - history[-1] <= settings.tolerance * history[-2]
            if settled or updates == settings.iterations or np.array_equal(next_KD, centroids_KD):
                return KMeansFit(centroids_KD, history, updates, counts_K, similarity_K)
            repaired = next_KD is not updated_KD
            centroids_KD = next_KD
    finally:
        for worker in workers:
            ray.kill(worker)


class _Worker:
    """One part of the embeddings. Loads at its first task, so a loader's error arrives as that error."""

    def __init__(self, loader: Loader, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._loader, self._threads, self._device = loader, threads, device

    @cached_property
    def _loaded(self) -> Loaded:
        return self._loader()

    @cached_property
    def _part(self) -> Part:
        return Part(self._loaded[0], threads=self._threads, device=self._device)

    def lowest(self, k: int, seed: int) -> tuple[int, NDArray[np.uint64]]:
        """The number of rows, and the k lowest keys among them."""
        key_N3 = initial_keys(*self._loaded[1:], seed)
        return len(key_N3), key_N3[lowest_keys(key_N3, k)]

    def rows_up_to(self, last: list[int], k: int, seed: int) -> tuple[NDArray[np.uint64], NDArray[np.float16]]:
        """Keys and rows of those with the k lowest keys here whose key is at most `last`."""
        key_N3 = initial_keys(*self._loaded[1:], seed)
        low_M = lowest_keys(key_N3, k)
        here_M = low_M[[key <= last for key in key_N3[low_M].tolist()]]
        return key_N3[here_M], self._loaded[0][here_M]

    def step(self, centroids_KD: NDArray[np.float64], slices: list[slice]) -> list[Sums] | Sums:
        """Exact sums under these centroids, one object for each slice of the clusters."""
        sums_KD, counts_K = self._part.step(centroids_KD)
        parts = [(sums_KD[clusters], counts_K[clusters]) for clusters in slices]
        return parts if len(parts) > 1 else parts[0]


def _initial(workers: Sequence[Any], k: int, seed: int) -> NDArray[np.float64]:
    """The rows with the k lowest keys of the whole pool, as centroids, lowest first."""
    answers = ray.get([worker.lowest.remote(k, seed) for worker in workers])
    num_rows = sum(count for count, _ in answers)
    if not k <= num_rows <= MAX_ROWS:
        rule = "at most the number of rows" if k > num_rows else f"used on at most {MAX_ROWS:,} rows"
        raise InputError(f"clusters must be {rule}, got {k:,} clusters for {num_rows:,} rows")
    key_M3 = np.concatenate([key for _, key in answers])
    last = key_M3[lowest_keys(key_M3, k)[-1]].tolist()
    found = ray.get([worker.rows_up_to.remote(last, k, seed) for worker in workers])
    keys_K3, rows_KD = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return unit_rows(rows_KD[lowest_keys(keys_K3, k)])


def _iterate(
    workers: Sequence[Any], centroids_KD: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Counts and summed similarity under these centroids, and the updated centroids."""
    slices = _slices(centroids_KD)
    centroids = ray.put(centroids_KD)
    answers = [worker.step.options(num_returns=len(slices)).remote(centroids, slices) for worker in workers]
    by_worker = answers if len(slices) > 1 else [[answer] for answer in answers]
    join = ray.remote(_join).options(num_cpus=0, max_retries=_RESTARTS)  # the actors may hold every CPU
    by_slice = zip(*by_worker, strict=True)
    joined = [join.remote(rows, centroids, *parts) for rows, parts in zip(slices, by_slice, strict=True)]
    counts_K, similarity_K, updated_KD = map(np.concatenate, zip(*ray.get(joined), strict=True))
    return counts_K, similarity_K, cast("NDArray[np.float64]", updated_KD)


def _join(
    rows: slice, centroids_KD: NDArray[np.float64], *parts: Sums
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    sums_SD, counts_S = merge_sums(parts)
    centroids_SD = centroids_KD[rows]
    return counts_S, summed_similarity(sums_SD, centroids_SD), update_centroids(sums_SD, counts_S, centroids_SD)


def _slices(centroids_KD: NDArray[np.float64]) -> list[slice]:
    """Cuts the clusters so that one slice's sums are about 64 MB."""
    per_slice = max(1, _SLICE_BYTES // max(1, centroids_KD[0].nbytes))
    return [slice(start, start + per_slice) for start in range(0, len(centroids_KD), per_slice)]
