"""Clusters of a model's image embeddings: fitted on the rows that enter a step, then every row assigned.

Output columns: `cluster` int32 and `similarity` float64; null for rows without an embedding. Similarity is the exact
cosine to the cluster's centroid, or with `metric: euclidean`, 1 less half the squared distance to it: either way
1 - similarity is a distance, and the largest similarity is what a row was assigned by (`operators.kmeans`).

Beside the parts lies `fit.npz`: `centroids_KD`, and of the final assignment of all rows `similarity_K`, the sum of its
members' similarities, and `sizes_K`; of the fitting, `inertia`, `iterations`, `rows` that were fitted on, `recall` (NaN
where the search was exact), `metric` and `two_level`; and what `pipeline.hierarchy` leaves there. Where it
leaves other centroids, the last `inertia` is that of all rows under these.
"""

import functools
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from operators.errors import InputError
from operators.uids import split_uids
from pipeline.artifact import Artifact, publish_beside
from pipeline.clustering import KMeansFit, KMeansSettings, check_init
from pipeline.columns import embeddings, present, scatter, uid_rows
from pipeline.hierarchy import Assign, Merged, check_refinement, merged, parents, refine
from pipeline.integrity import read_arrays
from pipeline.iterations import UNFINISHED, Iterations
from pipeline.placement import num_actors, num_on_gpus
from pipeline.resampling import Load
from pipeline.run import Plan, Read, Run
from pipeline.storage import Store

CLUSTERS_VERSION = 3


@dataclass(frozen=True)
class Fit:
    """A fitted clustering, as `fit.npz` holds it.

    Attributes:
        centroids_KD: float64; unit rows, or with `metric: euclidean` means.
        similarity_K: float64, the summed similarity of the members to their centroid.
        sizes_K: int64, the members.
        inertia: of the rows that were fitted on, under the first centroids and after each update; then, where levels or
            a merge have put other centroids in their place, of all rows under these.
        iterations: updates that were made.
        merged: where clusters that are concepts come from.
        parents: for each level but the top one, from the lowest up, the parent of each cluster.
        rows: that were fitted on.
        recall: the share of rows that found their nearest centroid; NaN where the search was exact, so all did.
        metric: what rows were assigned by.
        two_level: whether they looked among groups of centroids only.
    """

    centroids_KD: NDArray[np.float64]
    similarity_K: NDArray[np.float64]
    sizes_K: NDArray[np.int64]
    inertia: tuple[float, ...]
    iterations: int
    merged: Merged | None = None
    parents: tuple[NDArray[np.int32], ...] = ()
    rows: int = 0
    recall: float = math.nan
    metric: Literal["spherical", "euclidean"] = "spherical"
    two_level: bool = False

    @property
    def unit_KD(self) -> NDArray[np.float64]:
        """The directions of the centroids, which cosines between them are taken of."""
        if self.metric == "spherical":
            return self.centroids_KD
        from operators.kmeans import unit_rows  # imports torch

        return unit_rows(self.centroids_KD)


def cluster(run: Run, title: str, model: str, settings: KMeansSettings) -> Artifact:
    """Finds or makes the clusters of the entering rows.

    Args:
        run: the run; its entering rows are clustered.
        title: of the step that asks; the artifact is called `<title>.clusters`.
        model: whose image embeddings are clustered.
        settings: of k-means.

    Raises:
        InputError: more clusters than rows, or what is to follow k-means cannot be done with so many clusters.
    """
    settings = settings.decided(run.num_entering)
    identity = {"kind": "clusters", "version": CLUSTERS_VERSION, "seed": run.seed, **settings.model_dump(mode="json")}
    reads = [Read(run.samples, {"uid": "uid"}), Read(run.embeddings[model, "image"], {"embedding": "embedding"})]
    plan = run.plan(f"{title}.clusters", identity, reads, reduces=True)
    if published := plan.published:
        return run.add_clusters(title, published)
    if settings.k > run.num_entering:
        raise InputError(
            f"{title}.clusters must be at most the {run.num_entering} rows that enter the step, got {settings.k}"
        )
    try:
        check_init(settings.init, settings.k)
        check_refinement(settings)
    except ValueError as error:  # of clusters: auto, which no validator could know, or of the machines
        raise InputError(f"{title}.{error}") from error
    path = f"{plan.folder}/fit.npz"
    if not run.store.exists(path):  # a run that was stopped while it assigned rows has left it
        fit_rows = partial(_fit, plan, title, settings)
        fitted = fit_rows(load, seed=run.seed)
        refined = refine(plan, load, fitted.centroids_KD, settings, fit_rows)
        publish_beside(run.store, path, _npz(fitted, settings, refined))
    run.store.remove(f"{plan.folder}/{UNFINISHED}")
    fit = read_fit(run.store, path)
    info = {
        "fit": path,
        "clusters": len(fit.sizes_K),
        "inertia": list(fit.inertia),
        "iterations": fit.iterations,
        "rows_fitted": fit.rows,
        "recall": fit.recall if fit.two_level else None,
    }
    assign = partial(assign_rows, run.store, path, run.threads)
    return run.add_clusters(title, plan.map_attributes(assign, info=info, threads=run.threads))


def _fit(
    plan: Plan, title: str, settings: KMeansSettings, load: Load, *, seed: int, number: int | None = None
) -> KMeansFit:
    from pipeline.kmeans import fit  # here, since it imports torch: a config is read and checked without

    run, name = plan.run, f"{title}.fit" if number is None else f"{title}.fit.{number + 1}"
    gpus = num_on_gpus(run.gpus, run.threads)
    actors = gpus or num_actors(run.workers, run.threads)
    with run.progress.step(name, settings.iterations, unit="iterations") as progress:
        try:
            return fit(
                plan.blocks(plan.groups(actors), load),
                settings,
                seed=seed,
                threads=run.threads,
                on_gpus=gpus > 0,
                progress=lambda updates, _: progress.advance(updates - progress.rows),
                saved=Iterations(run.store, f"{plan.folder}/{UNFINISHED}/{0 if number is None else number + 1}"),
            )
        except RayTaskError:  # of a loader; it may be an InputError as well
            raise
        except InputError as error:
            raise InputError(f"{title}.{error}") from error


def load(table: pa.Table) -> tuple[NDArray[np.float16], NDArray[np.uint64], NDArray[np.uint64]]:
    """The rows that have an embedding: (x_ND float16, high_N, low_N of their uids)."""
    if table["embedding"].null_count:
        table = table.filter(table["embedding"].is_valid())
    return embeddings(table["embedding"]), *split_uids(uid_rows(table["uid"]))


def assign_rows(store: Store, path: str, threads: int, table: pa.Table) -> pa.Table:
    """The cluster and similarity of every row of a table."""
    present_N = present(table["embedding"])
    x_ND = embeddings(table["embedding"])
    cluster_N, similarity_N = _assigner(store, path, threads)(x_ND)
    return pa.table(
        {
            "cluster": scatter(pa.array(cluster_N, pa.int32()), present_N),
            "similarity": scatter(pa.array(similarity_N, pa.float64()), present_N),
        }
    )


@functools.lru_cache(maxsize=2)
def _assigner(store: Store, path: str, threads: int) -> Assign:
    """What gives rows their clusters and similarities; each worker prepares the centroids once."""
    from operators.certified import similarities  # imports torch
    from operators.kmeans import exact_search, offsets
    from operators.screen import measure_rows, prepare_columns
    from operators.two_level import group_search

    fit = read_fit(store, path)
    if fit.merged:
        return fit.merged.assigner(fit.centroids_KD, threads)
    search = group_search if fit.two_level else exact_search
    find = search(fit.centroids_KD, fit.metric, threads=threads, device="cpu")
    columns = prepare_columns(fit.centroids_KD, offsets(fit.centroids_KD, fit.metric))

    def assign(x_ND: NDArray[np.float16]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        rows = measure_rows(x_ND, threads=threads)
        cluster_N = find(rows)
        return cluster_N, similarities(rows, columns, cluster_N, threads=threads).clip(-1.0, 1.0)

    return assign


@functools.lru_cache(maxsize=2)
def read_fit(store: Store, path: str) -> Fit:
    """A published fit; each worker reads it once."""
    arrays = read_arrays(store, path)
    return Fit(
        arrays["centroids_KD"],
        arrays["similarity_K"],
        arrays["sizes_K"],
        tuple(arrays["inertia"].tolist()),
        int(arrays["iterations"]),
        merged(arrays),
        parents(arrays),
        int(arrays["rows"]),
        float(arrays["recall"]),
        cast("Any", str(arrays["metric"])),
        bool(arrays["two_level"]),
    )


def fit_of(store: Store, info: Mapping[str, Any]) -> Fit:
    """The fit that a clusters artifact's info names."""
    return read_fit(store, info["fit"])


def _npz(result: KMeansFit, settings: KMeansSettings, refined: Mapping[str, NDArray[Any]]) -> bytes:
    from operators.kmeans import inertia  # imports torch

    last = [inertia(refined["similarity_K"], refined["sizes_K"])] if refined else []
    arrays: dict[str, Any] = {
        "centroids_KD": result.centroids_KD,
        "similarity_K": result.similarity_K,
        "sizes_K": result.counts_K,
        "inertia": np.array([*result.inertia, *last]),
        "iterations": np.array(result.iterations),
        "rows": np.array(result.rows),
        "recall": np.array(math.nan if result.recall is None else result.recall),
        "metric": np.array(settings.metric),
        "two_level": np.array(settings.two_level),
    }
    sink = io.BytesIO()
    np.savez(sink, **{**arrays, **refined})
    return sink.getvalue()
