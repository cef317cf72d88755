"""The first centroids of a distributed k-means: the three ways to `init`.

Legend: M rows drawn, K clusters, C candidates, D dimensions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from operators.kmeans import first_centroids
from operators.selection import Cutoffs
from pipeline.clustering import KMeansSettings
from pipeline.kmeans_worker import joined
from pipeline.selection import find_cutoffs

SAMPLE_PER_CLUSTER = 16
"""Rows of the sample that k-means++ draws from, for each cluster. It takes k passes over the sample."""

ROUNDS = 4
"""Of oversampling in k-means||, after k rows drawn at random; each draws about k / 2. The paper begins with one row and
takes five rounds; from k rows fewer do."""


def choose(workers: Sequence[Any], settings: KMeansSettings, num_rows: int) -> NDArray[np.float64]:
    """The first centroids, as the settings say.

    Args:
        workers: handles of `pipeline.kmeans_worker.Worker`.
        settings: of the clustering.
        num_rows: of all workers, at least as many as clusters.

    Returns:
        centroids_KD: float64 on the grid, the same for any number of workers.
    """
    if settings.init == "random":
        _, rows_KD = joined(ray.get(draw(workers, settings.k)[1]))
    elif settings.init == "kmeans++":
        _, drawn = draw(workers, min(num_rows, SAMPLE_PER_CLUSTER * settings.k))
        rows_KD = ray.get(workers[0].spread_out.remote(settings.k, None, *drawn))
    else:
        rows_KD = _oversample(workers, settings.k)
    return first_centroids(rows_KD, settings.metric)


def draw(workers: Sequence[Any], count: int) -> tuple[Cutoffs, list[Any]]:
    """Draws exactly so many rows at random, those with the lowest keys: the rule, and a reference to each worker's."""
    rule = find_cutoffs(workers, np.array([count]))
    return rule, [worker.drawn.remote(rule) for worker in workers]


def _oversample(workers: Sequence[Any], k: int) -> NDArray[np.float16]:
    """K-means||: rounds that each draw rows far from all candidates so far, then k-means++ over the candidates.

    A candidate counts as often as there are rows nearest to it.
    """
    candidates = [ray.put(joined(ray.get(draw(workers, k)[1])))]
    for number in range(ROUNDS):
        total = sum(ray.get([worker.potential.remote(candidates) for worker in workers]))
        expected = max(1, k // 2)
        found = ray.get([worker.oversample.remote(candidates, total, expected, number) for worker in workers])
        candidates.append(ray.put(joined(found)))
    weight_C = np.sum(ray.get([worker.candidate_counts.remote(candidates) for worker in workers]), axis=0)
    rows_KD: NDArray[np.float16] = ray.get(workers[0].spread_out.remote(k, weight_C, *candidates))
    return rows_KD
