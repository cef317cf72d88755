"""`prune`: keeps a share of the pool, spread over its concepts.

`dbp` gives each cluster a quota by its density and keeps its hardest members (Abbas et al. 2024, arXiv 2401.04578);
`cluster_balanced` gives all clusters the same quota; `random` draws samples without looking at them.

Reads a model's image embeddings. Verdict reasons: `over_quota`, `not_drawn` (random), `no_embedding`. Details:
`cluster`, `distance` (1 - cosine to its centroid), `quota`, `threshold` (the distance of the cluster's last kept
member); for `random`: `draw`, uniform in [0, 1), and `threshold`. Beside the verdicts lies `clusters.parquet`, a row a
cluster.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.density import Density, densities, inter_distances, intra_distances, softmax
from operators.errors import UserError
from operators.hashing import keyed_hash
from operators.quotas import balance_floor, solve_quotas
from operators.selection import Cutoffs, Keys, cutoff_value, is_kept, order_key, unit_values
from operators.uids import split_uids
from pipeline.artifact import Artifact, parquet_bytes
from pipeline.columns import present, scatter, uid_rows
from pipeline.run import Modality, Plan, Read, Run, Verdicts
from pipeline.selection import exact_cutoffs, rows_to_keep
from pipeline.steps.base import reasons
from pipeline.steps.clustered import Clustered
from pipeline.steps.clusters import Fit, cluster, fit_of

Members = Literal["hard", "easy", "random"]


class Prune(Clustered):
    """Settings of the step.

    Attributes:
        method: how quotas are given.
        model, clusters and the other settings of the clustering: see `Clustered`; not for `random`.
        keep_fraction: share of the entering rows to keep.
        keep: number of rows to keep, instead of a share.
        density: what the softmax is taken of, for `dbp`.
        temperature: of the softmax; small ones favour dense differences, large ones flatten.
        neighbours: nearest other centroids that d_inter is the mean over (the paper's l).
        class_balance: 0 lets densities decide alone; b > 0 gives each cluster at least floor(b x kept / k).
        members: which members of a cluster stay: farthest from the centroid, nearest, or drawn.
    """

    random: ClassVar[bool] = True

    step: Literal["prune"]
    method: Literal["dbp", "cluster_balanced", "random"]
    keep_fraction: float | None = Field(default=None, gt=0, le=1)
    keep: int | None = Field(default=None, ge=1)
    density: Density = "dintra*dinter"
    temperature: float = Field(default=0.1, gt=0)
    neighbours: int = Field(default=20, ge=1)
    class_balance: float = Field(default=0.0, ge=0, le=1)
    members: Members = "hard"

    @model_validator(mode="after")
    def _check(self) -> "Prune":
        if (self.keep_fraction is None) == (self.keep is None):
            raise ValueError("needs exactly one of keep_fraction and keep")
        if self.method != "random" and (self.model is None or self.clusters is None):
            raise ValueError(f"needs model and clusters for method {self.method}")
        return self

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's images, unless members are drawn blindly."""
        return () if self.method == "random" else super().embeddings()

    def identity(self, run: Run) -> dict[str, Any]:
        """Settings that the method does not use are left out."""
        identity = super().identity(run)
        used = {"kind", "version", "seed", "step", "method", "keep_fraction", "keep"}
        return {key: value for key, value in identity.items() if self.method != "random" or key in used}

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        return self._draw(run) if self.method == "random" else self._prune(run)

    def _draw(self, run: Run) -> Artifact:
        plan = run.plan(self.title, self.identity(run), [Read(run.samples, {"uid": "uid"})], reduces=True)
        if published := plan.published:
            return published
        keep = np.array([self._rows_to_keep(run)], dtype=np.int64)
        keys = partial(draw_keys, run.seed, self.title)
        return plan.map_verdicts(partial(judge_draw, keys, _cutoffs(run, plan, keys, keep)))

    def _prune(self, run: Run) -> Artifact:
        assert self.model is not None
        assigned = cluster(run, self.title, self.model, self.kmeans)
        columns = {"cluster": "cluster", "similarity": "similarity"}
        reads = [Read(run.samples, {"uid": "uid"}), Read(assigned, columns)]
        plan = run.plan(self.title, self.identity(run), reads, reduces=True)
        if published := plan.published:
            return published
        table = self.quotas(fit_of(run.store, assigned.info), self._rows_to_keep(run))
        path = f"{plan.folder}/clusters.parquet"
        run.store.publish(path, parquet_bytes(table))
        quota_K = table["quota"].to_numpy()
        keys = partial(member_keys, self.members, run.seed, self.title)
        judge = partial(judge_members, keys, self.members, _cutoffs(run, plan, keys, quota_K), quota_K)
        return plan.map_verdicts(judge, info={"clusters": path, "inertia": assigned.info["inertia"]})

    def _rows_to_keep(self, run: Run) -> int:
        return rows_to_keep(self.title, run.num_entering, self.keep_fraction, self.keep)

    def quotas(self, fit: Fit, keep: int) -> pa.Table:
        """One row for each cluster: its size, its densities, and how many of its members stay."""
        density = "uniform" if self.method == "cluster_balanced" else self.density
        intra_K = intra_distances(fit.similarity_K, fit.sizes_K)
        inter_K = inter_distances(fit.centroids_KD, self.neighbours)
        density_K = densities(density, intra_K, inter_K, fit.sizes_K)
        probability_K = softmax(density_K, self.temperature, fit.sizes_K)
        floor = balance_floor(keep, len(fit.sizes_K), self.class_balance)
        try:
            quota_K = solve_quotas(probability_K, fit.sizes_K, keep, floor)
        except UserError as error:
            raise type(error)(f"{self.title}: {error}") from error
        return pa.table(
            {
                "cluster": np.arange(len(quota_K), dtype=np.int32),
                "size": fit.sizes_K,
                "d_intra": intra_K,
                "d_inter": inter_K,
                "density": density_K,
                "probability": probability_K,
                "quota": quota_K,
            }
        )


def draw_keys(seed: int, title: str, table: pa.Table) -> Keys:
    """Ranks rows by the hash of their uid."""
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    return Keys(np.zeros(len(high_N), np.int32), keyed_hash(high_N, low_N, seed, title), high_N, low_N)


def member_keys(members: Members, seed: int, title: str, table: pa.Table) -> Keys:
    """Ranks the rows that have a cluster among its members; ties go to the lowest uid."""
    table = table.filter(table["cluster"].is_valid())
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    cluster_N = table["cluster"].to_numpy()
    if members == "random":
        return Keys(cluster_N, keyed_hash(high_N, low_N, seed, title), high_N, low_N)
    similarity_N = table["similarity"].to_numpy()
    return Keys(cluster_N, order_key(similarity_N, descending=members == "easy"), high_N, low_N)


def judge_draw(keys: Any, cutoffs: Cutoffs, table: pa.Table) -> Verdicts:
    """Keeps the rows that were drawn."""
    drawn = keys(table)
    kept_N = is_kept(cutoffs, *drawn)
    draw_N = unit_values(drawn.value_N)
    threshold_N = np.full(len(draw_N), unit_values(cutoffs.last_G3[0, 0]))
    details = pa.StructArray.from_arrays([pa.array(draw_N), pa.array(threshold_N)], names=["draw", "threshold"])
    return Verdicts(kept_N, reasons(kept_N, "not_drawn"), details)


def judge_members(
    keys: Any, members: Members, cutoffs: Cutoffs, quota_K: NDArray[np.int64], table: pa.Table
) -> Verdicts:
    """Keeps the rows that are within their cluster's quota."""
    present_N = present(table["cluster"])
    ranked = keys(table)
    kept_N = np.zeros(table.num_rows, dtype=bool)
    kept_N[present_N] = is_kept(cutoffs, *ranked)
    threshold_K = 1.0 - cutoff_value(cutoffs, descending=members == "easy")
    cluster_n = ranked.group_N
    threshold_n = np.full(len(cluster_n), np.nan) if members == "random" else threshold_K[cluster_n]
    columns = {
        "cluster": table["cluster"].combine_chunks(),
        "distance": pa.array(1.0 - table["similarity"].to_numpy(zero_copy_only=False), from_pandas=True),
        "quota": scatter(pa.array(quota_K[cluster_n]), present_N),
        "threshold": scatter(pa.array(threshold_n, from_pandas=True), present_N),
    }
    why = np.where(present_N, "over_quota", "no_embedding").astype(object)
    details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return Verdicts(kept_N, pa.array(why, pa.string(), mask=kept_N), details)


def _cutoffs(run: Run, plan: Plan, keys: Any, quota_G: NDArray[np.int64]) -> Cutoffs:
    groups = plan.groups(run.workers)
    return exact_cutoffs(plan.loaders(groups, keys), quota_G, len(groups))
