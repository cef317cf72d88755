"""K-means spread over Ray actors; the arithmetic is in `operators.kmeans`, the actor in `pipeline.kmeans_worker`.

Each actor holds its part of the embeddings. In an iteration the driver puts the centroids into the object store; every
actor assigns its rows and answers with exact sums, cut into slices of clusters; one task for each slice joins the sums
of all actors and updates its centroids. So no process holds more than one actor's rows, or all actors' sums for one
slice. The driver sees centroids, and a count and a sum for each cluster.

A lost actor starts again, loads its rows and repeats its last step, which depends on nothing but the rows and the
centroids: a loss costs one iteration of one worker and changes no byte of the answer. A lost driver goes on from the
last iteration, which `pipeline.iterations` has kept.

Legend: K clusters, D dimensions, S clusters of one slice.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import ray
from numpy.typing import NDArray

from operators.errors import InputError
from operators.kmeans import (
    MAX_ROWS,
    Metric,
    Sums,
    inertia,
    merge_sums,
    repair_empty,
    summed_similarity,
    update_centroids,
)
from operators.selection import Cutoffs
from pipeline.clustering import KMeansFit, KMeansSettings
from pipeline.first_centroids import choose
from pipeline.iterations import Iterations, State
from pipeline.kmeans_keys import Loader, load_keys
from pipeline.kmeans_worker import Setup, Worker
from pipeline.placement import cpu_work
from pipeline.selection import KeyHolder, ended, find_cutoffs

_SLICE_BYTES = 64 * 2**20
_RECALL_ROWS = 4096
_RESTARTS = {"max_restarts": 20, "max_task_retries": 20}

Totals = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""counts_K and similarity_K under some centroids, and the centroids_KD that follow from them."""


def fit(
    loaders: Sequence[Loader],
    settings: KMeansSettings,
    *,
    seed: int,
    threads: int,
    on_gpus: bool = False,
    progress: Callable[[int, float], None] | None = None,
    saved: Iterations | None = None,
) -> KMeansFit:
    """Clusters the rows of all loaders; the same bytes for any number and order of loaders, threads and devices.

    Args:
        loaders: one for each actor, called in the actor, and again if the actor is lost.
        settings: how to cluster; the number of clusters must be known.
        seed: of all draws.
        threads: of each actor. All actors run at once, so their CPUs must be there (`pipeline.placement`).
        on_gpus: whether each actor takes a GPU as well, and screens there.
        progress: called with the number of updates made so far and the inertia.
        saved: where the state of each iteration is kept. A fit that was stopped goes on from there.

    Raises:
        InputError: more clusters than rows with an embedding, or more rows than exact sums can hold.
    """
    setup = Setup(settings, seed, threads, on_gpus, _sample(loaders, settings, seed))
    here = {} if on_gpus else cpu_work(threads * len(loaders))
    # On as many nodes as there are, since the embeddings fill their memory.
    options = {**_RESTARTS, **here, "scheduling_strategy": "SPREAD"}
    actor = ray.remote(Worker).options(num_cpus=threads, num_gpus=int(on_gpus), **options)
    # Ray restarts an actor with what it was first given, for as long as somebody here refers to that (issue 53727).
    held = [ray.put(loader) for loader in loaders]
    workers = [actor.remote(loader, setup) for loader in held]
    try:
        num_rows = sum(ray.get([worker.num_rows.remote() for worker in workers]))
        if not settings.k <= num_rows <= MAX_ROWS:
            rule = "at most the number of" if settings.k > num_rows else f"used on at most {MAX_ROWS:,}"
            got = f"{settings.k:,} clusters for {num_rows:,} rows"
            raise InputError(f"clusters must be {rule} rows with an embedding, got {got}")
        state = saved.load() if saved else None
        state = state or State(choose(workers, settings, num_rows))
        while True:
            if saved:
                saved.save(state)
            counts_K, similarity_K, updated_KD = _iterate(workers, state.centroids_KD, settings.metric)
            history = (*state.inertia, inertia(similarity_K, counts_K))
            updates = len(history) - 1
            if progress:
                progress(updates, history[-1])
            next_KD = repair_empty(updated_KD, counts_K, settings.metric)
            gain = history[-2] - history[-1] if updates else np.inf
            settled = not state.repaired and gain <= settings.tolerance * history[max(0, updates - 1)]
            if settled or updates == settings.iterations or np.array_equal(next_KD, state.centroids_KD):
                break
            state = State(next_KD, history, repaired=next_KD is not updated_KD)
        centroids_KD = state.centroids_KD
        if setup.sample:
            counts_K, similarity_K, _ = _iterate(workers, centroids_KD, settings.metric, "totals")
        recall = _recall(workers, centroids_KD, num_rows) if settings.two_level else None
        return KMeansFit(centroids_KD, list(history), updates, counts_K, similarity_K, num_rows, recall)
    finally:
        for worker in workers:
            ray.kill(worker)


def _sample(loaders: Sequence[Loader], settings: KMeansSettings, seed: int) -> Cutoffs | None:
    """Which rows to fit on: exactly as many as asked for, the first by keyed hash; None for all."""
    if settings.points_per_cluster is None:
        return None
    holder = ray.remote(KeyHolder).options(num_cpus=0.25, **_RESTARTS)
    wanted = settings.k * settings.points_per_cluster
    held = [ray.put([partial(load_keys, loader, seed)]) for loader in loaders]  # for a restart, as in `fit`
    with ended([holder.remote(part, 1) for part in held]) as holders:
        summaries = ray.get([holder.summarise.remote() for holder in holders])
        num_rows = sum(int(summary.size_G[0]) for summary in summaries)
        return find_cutoffs(holders, np.array([wanted])) if wanted < num_rows else None


def _iterate(
    workers: Sequence[Any],
    centroids_KD: NDArray[np.float64],
    metric: Metric,
    method: Literal["step", "totals"] = "step",
) -> Totals:
    """What all workers' rows say of these centroids: those they fit on, or with `totals` all that they can load."""
    slices = _slices(centroids_KD)
    centroids = ray.put(centroids_KD)
    methods = [getattr(worker, method).options(num_returns=len(slices)) for worker in workers]
    answers = [ask.remote(centroids, slices) for ask in methods]
    by_worker = answers if len(slices) > 1 else [[answer] for answer in answers]
    join = ray.remote(_join).options(num_cpus=0, max_retries=20)  # the actors may hold every CPU
    by_slice = zip(*by_worker, strict=True)
    joined = [join.remote(rows, centroids, metric, *parts) for rows, parts in zip(slices, by_slice, strict=True)]
    return cast("Totals", tuple(map(np.concatenate, zip(*ray.get(joined), strict=True))))


def _join(rows: slice, centroids_KD: NDArray[np.float64], metric: Metric, *parts: Sums) -> Totals:
    sums_SD, counts_S = merge_sums(parts)
    centroids_SD = centroids_KD[rows]
    similarity_S = summed_similarity(sums_SD, centroids_SD, counts_S, metric)
    return counts_S, similarity_S, update_centroids(sums_SD, counts_S, centroids_SD, metric)


def _slices(centroids_KD: NDArray[np.float64]) -> list[slice]:
    """Cuts the clusters so that one slice's sums are about 64 MB."""
    per_slice = max(1, _SLICE_BYTES // max(1, centroids_KD[0].nbytes))
    return [slice(start, start + per_slice) for start in range(0, len(centroids_KD), per_slice)]


def _recall(workers: Sequence[Any], centroids_KD: NDArray[np.float64], num_rows: int) -> float:
    """The share of a random sample of the rows that find the centroid which an exact search finds."""
    count = min(num_rows, _RECALL_ROWS)
    rule, centroids = find_cutoffs(workers, np.array([count])), ray.put(centroids_KD)
    found: list[int] = ray.get([worker.num_found.remote(centroids, rule) for worker in workers])
    return sum(found) / count
