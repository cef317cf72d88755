"""Clusters of a model's image embeddings: fitted on the rows that enter a step, then every row assigned.

Output columns: `cluster` int32 and `similarity` float64; null for rows without an embedding. Similarity is the exact
cosine to the cluster's centroid, or with `metric: euclidean`, 1 less half the squared distance to it: either way
1 - similarity is a distance, and the largest similarity is what a row was assigned by (`operators.kmeans`).

Beside the parts lies `fit.npz`: `centroids_KD`, and of the final assignment of all rows `similarity_K`, the sum of its
members' similarities, and `sizes_K`; of the fitting, `inertia`, `iterations`, `rows` that were fitted on, `recall` (NaN
where the search was exact), `metric` and `two_level`; and what `pipeline.hierarchy` leaves there. Where it
leaves other centroids, the last `inertia` is that of all rows under these.

Night by night (`pipeline.given`), the first night's fit is kept as `given.npz` in a folder that its centroids address;
rows are assigned to its centroids shard by shard, on the first night too. Beside the parts of each night then lies
`fit-<digest of the parts>.npz`: the same, but for `similarity_K` and `sizes_K`, which are those of all rows so far.
"""

import functools
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from operators.errors import InputError
from operators.limbs import join_limbs, sum_limbs
from operators.uids import split_uids
from pipeline.artifact import Artifact, publish_beside, read_columns
from pipeline.clustering import KMeansFit, KMeansSettings, check_init
from pipeline.columns import embeddings, present, scatter, uid_rows
from pipeline.given import Given, kept_fit
from pipeline.hierarchy import Assign, Merged, check_refinement, merged, parents, refine
from pipeline.integrity import read_arrays
from pipeline.iterations import UNFINISHED, Iterations
from pipeline.parts import Part
from pipeline.placement import num_actors, num_on_gpus
from pipeline.resampling import Load
from pipeline.run import NotPublished, Plan, Read, Run
from pipeline.spread import spread
from pipeline.storage import Store, digest

CLUSTERS_VERSION = 3

_DECIDING = ("centroids_KD", "micro_KD", "concept_K", "metric", "two_level")
"""What of a fit decides about an assignment."""


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
    reads = [Read(run.samples, {"uid": "uid"}), Read(run.embeddings[model, "image"], {"embedding": "embedding"})]
    if run.given is not None:
        return run.add_clusters(title, _assign_given(run, title, settings, reads, run.given))
    settings = settings.decided(run.num_entering)
    plan = _plan_fit(run, title, settings, reads)
    if published := plan.published:
        return run.add_clusters(title, published)
    path = _fitted(plan, title, settings)
    assign = partial(assign_rows, run.store, path, run.threads)
    info = _facts(path, read_fit(run.store, path))
    return run.add_clusters(title, plan.map_attributes(assign, info=info, threads=run.threads))


def _plan_fit(run: Run, title: str, settings: KMeansSettings, reads: Sequence[Read]) -> Plan:
    identity = {"kind": "clusters", "version": CLUSTERS_VERSION, "seed": run.seed, **settings.model_dump(mode="json")}
    return run.plan(f"{title}.clusters", identity, reads, reduces=True)


def _fitted(plan: Plan, title: str, settings: KMeansSettings) -> str:
    """The path of the fit of a plan's rows, which a run that was stopped while it assigned rows may have left."""
    run = plan.run
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
    if not run.store.exists(path):
        fit_rows = partial(_fit, plan, title, settings)
        fitted = fit_rows(load, seed=run.seed)
        refined = refine(plan, load, fitted.centroids_KD, settings, fit_rows)
        publish_beside(run.store, path, _npz(fitted, settings, refined))
    run.store.remove(f"{plan.folder}/{UNFINISHED}")
    return path


def _facts(path: str, fit: Fit) -> dict[str, Any]:
    """What the manifest says of a fit."""
    return {
        "fit": path,
        "clusters": len(fit.sizes_K),
        "inertia": list(fit.inertia),
        "iterations": fit.iterations,
        "rows_fitted": fit.rows,
        "recall": fit.recall if fit.two_level else None,
    }


def _assign_given(run: Run, title: str, settings: KMeansSettings, reads: Sequence[Read], given: Given) -> Artifact:
    """Assigns rows to the centroids of the first night: this one, where none are given yet."""
    name = f"{title}.clusters"
    if title not in given.fits:
        settings = settings.decided(run.num_entering)
        fitting = _plan_fit(run, title, settings, reads)
        if run.dry and not run.store.exists(f"{fitting.folder}/fit.npz"):
            raise NotPublished(name)
        arrays = read_arrays(run.store, _fitted(fitting, title, settings))
    else:
        arrays = read_arrays(run.store, kept_fit(run.store, given.fits[title]))
    deciding = {name: (arrays[name].dtype.str, arrays[name].tobytes()) for name in _DECIDING if name in arrays}
    identity = {
        "kind": "clusters",
        "version": CLUSTERS_VERSION,
        "given": {name: [dtype, hashlib.sha256(data).hexdigest()] for name, (dtype, data) in deciding.items()},
    }
    plan = run.plan(name, identity, reads)
    path = given.fits[title] = f"{plan.folder}/given.npz"
    if published := plan.published:
        return published
    if not run.store.exists(path):
        publish_beside(run.store, path, _npz_bytes(arrays))
    plan.facts = partial(_sum_up, run, plan.folder, arrays)
    return plan.map_attributes(partial(assign_rows, run.store, path, run.threads), threads=run.threads)


def _sum_up(run: Run, folder: str, arrays: Mapping[str, NDArray[Any]], parts: Sequence[Part]) -> dict[str, Any]:
    """Publishes the fit whose sizes and similarities are those of all parts; gives what the manifest says of it."""
    totals_K3 = np.zeros((len(arrays["sizes_K"]), 3), np.int64)
    add_up = partial(_add_up, run.store, len(totals_K3))
    for totals in spread(add_up, [part.path for part in parts], workers=run.workers):
        totals_K3 += totals
    path = f"{folder}/fit-{digest([part.id for part in parts])}.npz"
    measured = {"sizes_K": totals_K3[:, 0], "similarity_K": join_limbs(totals_K3[:, 1:])}
    publish_beside(run.store, path, _npz_bytes({**arrays, **measured}))
    return _facts(path, read_fit(run.store, path))


def _add_up(store: Store, clusters: int, path: str) -> NDArray[np.int64]:
    """Totals_K3: the members of each cluster in one part, and the limbs of the sum of their similarities."""
    table = read_columns(store, path, ["cluster", "similarity"])
    cluster_n, similarity_n = (table[name].drop_null().to_numpy() for name in ("cluster", "similarity"))
    sizes_K = np.bincount(cluster_n, minlength=clusters)
    return np.column_stack([sizes_K, sum_limbs(similarity_n, cluster_n, clusters)])


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
    return _npz_bytes({**arrays, **refined})


def _npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]
    return sink.getvalue()
