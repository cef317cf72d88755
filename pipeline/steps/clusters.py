"""Clusters of a model's image embeddings: fitted on the rows that enter a step, then every row assigned.

Output columns: `cluster` int32 and `similarity` float64, the exact cosine to the cluster's centroid; null for rows
without an embedding. Beside the parts lies `fit.npz`: `centroids_KD`, and of the final assignment `similarity_K`, the
sum of its members' similarities, and `sizes_K`; of the fitting, `inertia` and `iterations`.
"""

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import InputError
from operators.uids import split_uids
from pipeline.artifact import Artifact
from pipeline.clustering import KMeansFit, KMeansSettings
from pipeline.columns import embeddings, present, scatter, uid_rows
from pipeline.run import Plan, Read, Run
from pipeline.storage import Store

CLUSTERS_VERSION = 1


@dataclass(frozen=True)
class Fit:
    """A fitted clustering, as `fit.npz` holds it.

    Attributes:
        centroids_KD: float64 unit rows.
        similarity_K: float64, the summed similarity of the members to their centroid.
        sizes_K: int64, the members.
        inertia: under the first centroids, and after each update.
        iterations: updates that were made.
    """

    centroids_KD: NDArray[np.float64]
    similarity_K: NDArray[np.float64]
    sizes_K: NDArray[np.int64]
    inertia: tuple[float, ...]
    iterations: int


def cluster(run: Run, title: str, model: str, settings: KMeansSettings) -> Artifact:
    """Finds or makes the clusters of the entering rows.

    Args:
        run: the run; its entering rows are clustered.
        title: of the step that asks; the artifact is called `<title>.clusters`.
        model: whose image embeddings are clustered.
        settings: of k-means.

    Raises:
        InputError: more clusters than rows.
    """
    identity = {"kind": "clusters", "version": CLUSTERS_VERSION, "seed": run.seed, **settings.model_dump(mode="json")}
    reads = [Read(run.samples, {"uid": "uid"}), Read(run.embeddings[model, "image"], {"embedding": "embedding"})]
    plan = run.plan(f"{title}.clusters", identity, reads, reduces=True)
    if published := plan.published:
        return published
    if settings.clusters > run.num_entering:
        raise InputError(
            f"{title}.clusters must be at most the {run.num_entering} rows that enter the step, got {settings.clusters}"
        )
    path = f"{plan.folder}/fit.npz"
    if not run.store.exists(path):  # a run that was stopped while it assigned rows has left it
        run.store.publish(path, _npz(_fit(plan, title, settings)))
    fit = read_fit(run.store, path)
    info = {"fit": path, "inertia": list(fit.inertia), "iterations": fit.iterations}
    return plan.map_attributes(partial(assign_rows, run.store, path, run.threads), info=info)


def _fit(plan: Plan, title: str, settings: KMeansSettings) -> KMeansFit:
    from pipeline.kmeans import fit  # here, since it imports torch: a config is read and checked without

    run = plan.run
    # Every actor needs its threads at the same time.
    groups = plan.groups(max(1, run.workers // run.threads))
    with run.progress.step(f"{title}.fit", settings.iterations, unit="iterations") as progress:
        return fit(
            plan.loaders(groups, load),
            settings,
            seed=run.seed,
            threads=run.threads,
            progress=lambda updates, _: progress.advance(updates - progress.rows),
        )


def load(table: pa.Table) -> tuple[NDArray[np.float16], NDArray[np.uint64], NDArray[np.uint64]]:
    """The rows that have an embedding: (x_ND float16, high_N, low_N of their uids)."""
    table = table.filter(table["embedding"].is_valid())
    return embeddings(table["embedding"]), *split_uids(uid_rows(table["uid"]))


def assign_rows(store: Store, path: str, threads: int, table: pa.Table) -> pa.Table:
    """The cluster and similarity of every row of a table."""
    from operators.certified import assign  # imports torch

    present_N = present(table["embedding"])
    x_ND = embeddings(table["embedding"])
    cluster_N, similarity_N = assign(x_ND, read_fit(store, path).centroids_KD, threads=threads)
    return pa.table(
        {
            "cluster": scatter(pa.array(cluster_N, pa.int32()), present_N),
            "similarity": scatter(pa.array(similarity_N, pa.float64()), present_N),
        }
    )


@functools.lru_cache(maxsize=2)
def read_fit(store: Store, path: str) -> Fit:
    """A published fit; each worker reads it once."""
    with np.load(io.BytesIO(store.read(path)), allow_pickle=False) as arrays:
        return Fit(
            arrays["centroids_KD"],
            arrays["similarity_K"],
            arrays["sizes_K"],
            tuple(arrays["inertia"].tolist()),
            int(arrays["iterations"]),
        )


def fit_of(store: Store, info: Mapping[str, Any]) -> Fit:
    """The fit that a clusters artifact's info names."""
    return read_fit(store, info["fit"])


def _npz(result: KMeansFit) -> bytes:
    sink = io.BytesIO()
    np.savez(
        sink,
        centroids_KD=result.centroids_KD,
        similarity_K=result.similarity_K,
        sizes_K=result.counts_K,
        inertia=np.array(result.inertia),
        iterations=np.array(result.iterations),
    )
    return sink.getvalue()
