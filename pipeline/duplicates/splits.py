"""Cutting giant clusters: a k-means over the rows of each, so that no task needs one whole."""

import io
from collections.abc import Mapping
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.clustering import KMeansSettings
from pipeline.duplicates.layout import Split, cut_giants
from pipeline.placement import num_actors, num_on_gpus
from pipeline.run import Plan
from pipeline.steps.clusters import load

_ITERATIONS = 10
_SPARE = 2
"""Parts of a split, in multiples of how many would do if they were equal."""

Ints = NDArray[np.int64]


def split_giants(plan: Plan, folder: str, sizes_K: Ints, largest: int) -> Mapping[int, tuple[Split, Ints]]:
    """Cuts every cluster of more than `largest` rows.

    Args:
        plan: reads `cluster` and `embedding`, whole, once for each giant.
        folder: of this attempt.
        sizes_K: rows of each cluster.
        largest: rows of a block, more or less.

    Returns:
        by cluster: how it is cut, and how many rows each part has.
    """
    return {
        int(cluster): _split(plan, f"{folder}/splits/{cluster:06d}.npz", (int(cluster), int(sizes_K[cluster])), largest)
        for cluster in np.flatnonzero(sizes_K > largest)
    }


def _split(plan: Plan, path: str, giant: tuple[int, int], largest: int) -> tuple[Split, Ints]:
    from pipeline.kmeans import fit  # imports torch

    run, (cluster, rows) = plan.run, giant
    gpus = num_on_gpus(run.gpus, run.threads)
    groups = plan.groups(gpus or num_actors(run.workers, run.threads))
    loaders = plan.blocks(groups, partial(_load_cluster, cluster))
    settings = KMeansSettings(clusters=min(_SPARE * -(-rows // largest), rows), iterations=_ITERATIONS)
    fitted = fit(loaders, settings, seed=run.seed, threads=run.threads, on_gpus=gpus > 0)
    sink = io.BytesIO()
    np.savez(sink, centroids_KD=fitted.centroids_KD)
    run.store.replace(path, sink.getvalue())
    return Split(path, cut_giants(fitted.counts_K, largest)), fitted.counts_K


def _load_cluster(cluster: int, table: pa.Table) -> tuple[NDArray[np.float16], NDArray[np.uint64], NDArray[np.uint64]]:
    return load(table.filter(pc.equal(table["cluster"], cluster)))
