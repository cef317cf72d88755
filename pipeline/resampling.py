"""Balanced resampling of the lowest level of a hierarchy, that of the samples; `operators.levels` does those above.

A round keeps the rows nearest to each centroid, the same number of each cluster, and clusters those anew. Rows are
assigned, counted and chosen where they lie. A round leaves its centroids in the workspace, so a run that was stopped
goes on after its last one.

Legend: N rows, K clusters, D dimensions.
"""

import io
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from operators.selection import Cutoffs, Keys, is_kept, order_key
from pipeline.integrity import read_arrays
from pipeline.iterations import UNFINISHED
from pipeline.placement import num_actors
from pipeline.run import Plan
from pipeline.selection import exact_cutoffs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Loaded = tuple[NDArray[np.float16], NDArray[np.uint64], NDArray[np.uint64]]
Load = Callable[[pa.Table], Loaded]
"""Gives (x_ND, high_N, low_N) of the rows of a table that have an embedding: they, and the halves of their uids."""

Blocks = Callable[[], Iterable[Loaded]]


class Resampling(BaseModel):
    """How each level of a hierarchy is balanced.

    Attributes:
        rounds: of keeping the rows nearest to each centroid and clustering those again; 0 turns it off.
        points: rows that a round keeps of each cluster; half of the average cluster where it is not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=10, ge=0)
    points: int | None = Field(default=None, ge=1)


class Fit(Protocol):
    """What k-means found."""

    @property
    def centroids_KD(self) -> Floats:
        """Float64 on the 2^-28 grid."""


class Fitter(Protocol):
    """K-means over the rows that `load` gives of a plan's tables; `number` tells the rounds of resampling apart."""

    def __call__(self, load: Load, *, seed: int, number: int) -> Fit:
        """The fit."""


def resample(plan: Plan, load: Load, centroids_KD: Floats, settings: Resampling, fit: Fitter) -> Floats:
    """Balances the clusters: keeps the rows nearest to each centroid, clusters those anew, and so on.

    Args:
        plan: of the clustering.
        load: gives all rows of a table.
        centroids_KD: of k-means over all rows.
        settings: how many rounds, and how many rows of each cluster.
        fit: k-means over some of the rows.

    Notes:
        Vo et al. 2024, arXiv 2405.15613. It ends early where the rows chosen are too few to fill the clusters.
    """
    from operators.levels import derived_seed, points_to_keep  # here, since it imports torch

    run = plan.run
    with run.progress.step(f"{plan.name}.resample", settings.rounds, unit="rounds") as progress:
        for number in range(settings.rounds):
            path = f"{plan.folder}/{UNFINISHED}/round-{number:03}.npz"
            if not run.store.exists(path):
                _, counts_K = cluster_sums(plan, load, centroids_KD)
                points = points_to_keep(int(counts_K.sum()), len(counts_K), settings.points)
                quota_K = np.minimum(counts_K, points)
                if quota_K.sum() < len(quota_K):
                    break
                chosen = _nearest_rows(plan, load, centroids_KD, quota_K)
                seed = derived_seed(run.seed, "round", str(number))
                run.store.publish(path, _npz(fit(chosen, seed=seed, number=number).centroids_KD))
            centroids_KD = read_arrays(run.store, path)["centroids_KD"]
            progress.advance(1)
    return centroids_KD


def cluster_sums(plan: Plan, load: Load, centroids_KD: Floats) -> tuple[Floats, Ints]:
    """The exact sum and the number of the rows nearest to each centroid, wherever they lie.

    There is one task for each of a few groups of shards; the driver holds the sums of one of them beside the total.
    """
    run = plan.run
    groups = plan.groups(num_actors(run.workers, run.threads))
    task = ray.remote(_sums).options(num_cpus=run.threads, max_retries=3)
    centroids = ray.put(centroids_KD)
    waiting = [task.remote(blocks, centroids, run.threads) for blocks in plan.blocks(groups, load)]
    sums_KD, counts_K = np.zeros_like(centroids_KD), np.zeros(len(centroids_KD), dtype=np.int64)
    while waiting:
        (done,), waiting = ray.wait(waiting, num_returns=1)
        more_KD, more_K = ray.get(done)
        sums_KD += more_KD
        counts_K += more_K
    return sums_KD, counts_K


def nearness(load: Load, centroids: Any, threads: int, table: pa.Table) -> Keys:
    """Ranks the rows of each cluster by similarity to its centroid.

    Args:
        load: gives a table's rows.
        centroids: Ray's reference to them, so that they travel to each machine once.
        threads: the answer does not depend on it.
        table: of the plan.
    """
    return _keys(load(table), centroids, threads)


def load_nearest(load: Load, centroids: Any, threads: int, cutoffs: Cutoffs, table: pa.Table) -> Loaded:
    """The rows that are within the cut-offs of their clusters; arguments as for `nearness`."""
    x_ND, high_N, low_N = loaded = load(table)
    kept_N = is_kept(cutoffs, *_keys(loaded, centroids, threads))
    return x_ND[kept_N], high_N[kept_N], low_N[kept_N]


def _nearest_rows(plan: Plan, load: Load, centroids_KD: Floats, quota_K: Ints) -> Load:
    """A loader of the quota of rows nearest to each centroid, ties to the lowest uid."""
    groups, centroids = plan.groups(plan.run.workers), ray.put(centroids_KD)
    ranked = plan.blocks(groups, partial(nearness, load, centroids, 1))
    cutoffs = exact_cutoffs([partial(_joined, blocks) for blocks in ranked], quota_K, len(groups))
    return partial(load_nearest, load, centroids, plan.run.threads, cutoffs)


def _joined(blocks: Callable[[], Iterable[Keys]]) -> Keys:
    return Keys(*map(np.concatenate, zip(*blocks(), strict=True)))


def _keys(loaded: Loaded, centroids: Any, threads: int) -> Keys:
    from operators.certified import assign

    x_ND, high_N, low_N = loaded
    cluster_N, similarity_N = assign(x_ND, ray.get(centroids), threads=threads)
    return Keys(cluster_N, order_key(similarity_N, descending=True), high_N, low_N)


def _sums(blocks: Blocks, centroids_KD: Floats, threads: int) -> tuple[Floats, Ints]:
    from operators.kmeans import Part, merge_sums

    return reduce(
        lambda *two: merge_sums(two), (Part(x_BD, threads=threads).step(centroids_KD) for x_BD, _, _ in blocks())
    )


def _npz(centroids_KD: Floats) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, centroids_KD=centroids_KD)
    return sink.getvalue()
