"""What may follow k-means: resampling, levels above the clusters, or a merge of the clusters into concepts.

It all ends up in a clustering's `fit.npz`, beside what k-means leaves there:

- after a merge, centroids, sizes and similarities are those of the concepts, and three arrays tell where they come
  from: `micro_KD`, `concept_K` and `merges_M4`;
- of levels, `parents_0`, `parents_1` ...: the parent of each cluster, from the lowest level up.

The arithmetic is in `operators.levels` and `operators.concepts`.

Legend: N rows, K clusters of k-means, C concepts, D dimensions, M merges.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.hac import MAX_ROWS, Linkage
from pipeline.resampling import Fitter, Load, cluster_sums, resample
from pipeline.run import Plan

if TYPE_CHECKING:
    from operators.concepts import Concepts
    from pipeline.clustering import KMeansSettings

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
Assign = Callable[[NDArray[np.float16]], tuple[NDArray[np.int32], Floats]]
"""Gives cluster_N and similarity_N of x_ND."""

_PAIR_BYTES = 8
"""What a merge takes for each pair of clusters, counted both ways (`operators.hac`)."""


class Merge(BaseModel):
    """How clusters are merged into concepts, by the distance of their centroids. Exactly one of `to` and `distance`.

    Attributes:
        linkage: distance of two concepts: the mean, largest or smallest 1 - cos over their clusters' centroids; or
            Ward's on the unit centroids, with Euclidean distances.
        to: how many concepts.
        distance: merge only what is nearer than this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    linkage: Linkage = "average"
    to: int | None = Field(default=None, ge=1)
    distance: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.to is None) == (self.distance is None):
            raise ValueError("needs exactly one of to and distance")
        return self


@dataclass(frozen=True)
class Merged:
    """Where the concepts of a fit come from.

    Attributes:
        micro_KD: float64, the centroids that rows are assigned by.
        concept_K: int32, the concept of each of those clusters.
        merges_M4: float64, the whole tree over them, in scipy's form.
    """

    micro_KD: Floats
    concept_K: NDArray[np.int32]
    merges_M4: Floats

    def assigner(self, centroids_CD: Floats, threads: int) -> Assign:
        """What gives rows their concepts and the exact cosines to these concepts' centroids."""
        from operators.concepts import assign_concepts
        from operators.screen import prepare_columns

        micro, concepts = prepare_columns(self.micro_KD), prepare_columns(centroids_CD)
        return partial(assign_concepts, micro=micro, concept_K=self.concept_K, concepts=concepts, threads=threads)


def refine(plan: Plan, load: Load, centroids_KD: Floats, settings: "KMeansSettings", fit: Fitter) -> Arrays:
    """Does what the settings ask for after k-means.

    Args:
        plan: of the clustering.
        load: gives all rows of a table.
        centroids_KD: of k-means over all rows.
        settings: of the clustering.
        fit: k-means over some of the rows, for resampling.

    Returns:
        arrays for `fit.npz`, in place of or beside those of k-means; empty where nothing is asked for.
    """
    arrays: dict[str, NDArray[Any]] = {}
    if settings.levels:
        arrays |= _levels(plan, load, centroids_KD, settings, fit)
    if settings.merge:
        concepts = _merge(plan, load, centroids_KD, settings.merge)
        arrays |= {"micro_KD": centroids_KD, "concept_K": concepts.concept_K, "merges_M4": concepts.merges_M4}
        arrays |= _measured(concepts.centroids_CD, concepts.sizes_C, concepts.similarity_C)
    return arrays


def merged(arrays: Arrays) -> Merged | None:
    """Where the concepts of a `fit.npz` come from; None where its clusters are those of k-means."""
    return Merged(arrays["micro_KD"], arrays["concept_K"], arrays["merges_M4"]) if "micro_KD" in arrays else None


def parents(arrays: Arrays) -> tuple[NDArray[np.int32], ...]:
    """For each level of a `fit.npz` but the top one, from the lowest up, the parent of each cluster."""
    return tuple(arrays[f"parents_{i}"] for i in range(sum(name.startswith("parents_") for name in arrays)))


def check_refinement(settings: "KMeansSettings") -> None:
    """Raises ValueError where what is to follow k-means cannot be done with so many clusters, or on these machines.

    Args:
        settings: of the clustering, with nothing left open.
    """
    check_levels(settings.k, settings.levels)
    if settings.merge:
        check_merge(settings.k, settings.merge)
        _check_memory(settings.k)


def check_merge(clusters: int, merge: Merge) -> None:
    """Raises ValueError unless so many clusters can be merged like that; for validators."""
    if clusters > MAX_ROWS:
        raise ValueError(f"clusters must be at most {MAX_ROWS:,} where they are merged, got {clusters:,}")
    if merge.to and merge.to > clusters:
        raise ValueError(f"merge.to must be at most clusters ({clusters}), got {merge.to}")


def check_levels(clusters: int | Literal["auto"], levels: Sequence[int]) -> None:
    """Raises ValueError unless each level has fewer clusters than the one below; for validators."""
    sizes = (math.inf if clusters == "auto" else clusters, *levels)
    if any(not 1 <= above < below for below, above in pairwise(sizes)):
        raise ValueError(f"levels must fall from below clusters ({clusters}), got {list(levels)}")


def _levels(
    plan: Plan, load: Load, centroids_KD: Floats, settings: "KMeansSettings", fit: Fitter
) -> dict[str, NDArray[Any]]:
    from operators.kmeans import summed_similarity
    from operators.levels import Effort, cluster_level, derived_seed

    run, resampling = plan.run, settings.resampling
    centroids_KD = resample(plan, load, centroids_KD, resampling, fit)
    sums_KD, counts_K = cluster_sums(plan, load, centroids_KD)
    task = ray.remote(cluster_level).options(num_cpus=run.threads, num_returns=2, max_retries=3)
    effort = Effort(settings.iterations, resampling.rounds, resampling.points)
    centroids, found = ray.put(centroids_KD), []
    for number, k in enumerate(settings.levels):
        seed = derived_seed(run.seed, "level", str(number))
        centroids, parent = task.remote(centroids, k, effort, seed=seed, threads=run.threads)
        found.append(parent)
    by_name = {f"parents_{i}": parent_K for i, parent_K in enumerate(ray.get(found))}
    return {**by_name, **_measured(centroids_KD, counts_K, summed_similarity(sums_KD, centroids_KD))}


def _merge(plan: Plan, load: Load, centroids_KD: Floats, settings: Merge) -> "Concepts":
    """In a task: the distances of 30,000 clusters take 7 GB, too much for the driver."""
    from operators.concepts import merge_clusters

    rows = cluster_sums(plan, load, centroids_KD)
    needed_bytes = _PAIR_BYTES * len(centroids_KD) ** 2
    task = ray.remote(merge_clusters).options(num_cpus=1, max_retries=3, memory=needed_bytes)
    done = task.remote(centroids_KD, rows, settings.linkage, to=settings.to, distance=settings.distance)
    concepts: Concepts = ray.get(done)
    return concepts


def _check_memory(clusters: int) -> None:
    """Raises ValueError where no machine has the memory for a merge, as Ray would wait for one forever."""
    largest = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
    if _PAIR_BYTES * clusters**2 > largest:
        raise ValueError(
            f"clusters must be at most {math.isqrt(largest // _PAIR_BYTES):,} where they are merged, as distances take "
            f"{_PAIR_BYTES} bytes x clusters squared and the largest machine has {largest / 1e9:.1f} GB, "
            f"got {clusters:,}"
        )


def _measured(centroids_KD: Floats, sizes_K: NDArray[np.int64], similarity_K: Floats) -> dict[str, NDArray[Any]]:
    return {"centroids_KD": centroids_KD, "sizes_K": sizes_K, "similarity_K": similarity_K}
