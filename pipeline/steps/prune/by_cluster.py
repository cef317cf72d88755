"""`prune` by clusters: each cluster gets a quota, and its hardest, easiest or drawn members stay.

Reads a model's image embeddings. Verdict reasons: `over_quota`, `no_embedding`. Details: `cluster`, `distance`
(1 - cosine to its centroid; with `metric: euclidean` half the squared distance), `quota`, and what says why the row
stayed or went: `threshold`, the distance of the cluster's last kept member, with `members: hard | easy`; `bin` and
`bin_quota` with `stratified`.
Beside the verdicts lies `clusters.parquet`, a row a cluster: `cluster`, `size`, `d_intra`, `d_inter`, `density`,
`probability`, `quota`; and where verdicts of an earlier run stand, `standing`, the rows that they keep. The `quota` of
a new row's details is then what they leave of its cluster's.

How quotas are given is up to the methods: `density`, `balanced`, and whatever else derives from `ByCluster`.

Legend: K clusters.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.density import inter_distances, intra_distances
from operators.errors import UserError
from operators.quotas import solve_quotas
from pipeline.artifact import Artifact, parquet_bytes, publish_beside
from pipeline.run import Plan, Read, Run
from pipeline.spread import spread
from pipeline.steps.base import refuse_ignored
from pipeline.steps.clustered import Clustered
from pipeline.steps.clusters import Fit, cluster, fit_of
from pipeline.steps.prune import ranked, stratified
from pipeline.steps.prune.base import Prune
from pipeline.steps.prune.ranked import Members
from pipeline.storage import Store
from pipeline.units import Unit, Verdicts, read_standing, read_unit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEIGHBOURS = 20
"""The paper's l."""


class Distances(NamedTuple):
    """How dense each cluster is and how far from its neighbours (`operators.density`)."""

    intra_K: Floats
    inter_K: Floats


class Weights(NamedTuple):
    """What quotas are in proportion to: `probability_K`, a function of `density_K`."""

    density_K: Floats
    probability_K: Floats


class Room(NamedTuple):
    """What quotas lie between.

    Attributes:
        most_K: int64, the members of each cluster that can be kept: not those that stand and were dropped.
        kept_K: int64, those that stand and were kept; None where no verdicts stand.
    """

    most_K: Ints
    kept_K: Ints | None = None


class ByCluster(Prune, Clustered):
    """Settings that all of these methods share, besides those of the clustering.

    Attributes:
        members: which members of a cluster stay: farthest from the centroid (`hard`), nearest (`easy`), drawn
            (`random`), or drawn in equal numbers from equal ranges of similarity (`stratified`).
        bins: ranges of similarity in each cluster, for `members: stratified`.
    """

    members: Members = "hard"
    bins: int = Field(default=20, ge=1, le=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check_one_target()
        if self.model is None or self.clusters is None:
            raise ValueError("needs model and clusters")
        if self.members != "stratified":
            refuse_ignored(self, ["bins"], "without members: stratified")
        return self

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        assert self.model is not None
        assigned = cluster(run, self.title, self.model, self.kmeans)
        columns = {"cluster": "cluster", "similarity": "similarity"}
        reads = [Read(run.samples, {"uid": "uid"}), Read(assigned, columns)]
        plan = run.plan(self.title, self.identity(run), reads, reduces=True)
        if published := plan.published:
            return published
        fit = fit_of(run.store, assigned.info)
        room = find_room(plan, len(fit.sizes_K)) if plan.standing else None
        table = self.quotas(fit, self.rows_to_keep(run), room)
        path = f"{plan.folder}/clusters.parquet"
        publish_beside(run.store, path, parquet_bytes(table))
        info = {"clusters": path, "fit": assigned.info["fit"], "inertia": assigned.info["inertia"]}
        if not plan.new.units:
            return plan.publish((), info)
        quota_K = table["quota"].to_numpy()
        if room:
            quota_K = quota_K - table["standing"].to_numpy()
        return plan.map_verdicts(self._judge(plan.new, quota_K), info=info)

    def quotas(self, fit: Fit, keep: int, room: Room | None = None) -> pa.Table:
        """One row for each cluster: its size, its densities, and how many of its members stay.

        Args:
            fit: the clusters.
            keep: how many stay in all.
            room: where verdicts stand, what that leaves possible; `keep` yields to it.
        """
        if room and room.kept_K is not None:
            keep = min(max(keep, int(room.kept_K.sum())), int(room.most_K.sum()))
        distances = Distances(
            intra_distances(fit.similarity_K, fit.sizes_K), inter_distances(fit.unit_KD, self.num_neighbours)
        )
        weights = self.weigh(fit, distances)
        try:
            quota_K = self.allot(fit, weights.probability_K, keep, room or Room(fit.sizes_K))
        except UserError as error:
            raise type(error)(f"{self.title}: {error}") from error
        standing = {} if room is None else {"standing": room.kept_K}
        return pa.table(
            {
                "cluster": np.arange(len(quota_K), dtype=np.int32),
                "size": fit.sizes_K,
                "d_intra": distances.intra_K,
                "d_inter": distances.inter_K,
                "density": weights.density_K,
                "probability": weights.probability_K,
                "quota": quota_K,
                **standing,
            }
        )

    @property
    def num_neighbours(self) -> int:
        """Nearest other centroids that d_inter is the mean over."""
        return NEIGHBOURS

    @abstractmethod
    def weigh(self, fit: Fit, distances: Distances) -> Weights:
        """What the quotas of the method are in proportion to."""

    def allot(self, fit: Fit, probability_K: Floats, keep: int, room: Room) -> Ints:
        """The quotas, summing to `keep`. Raises ConfigError where that cannot be."""
        return solve_quotas(probability_K, room.most_K, keep, kept_K=room.kept_K)

    def _judge(self, plan: Plan, quota_K: Ints) -> Callable[[pa.Table], Verdicts]:
        if self.members == "stratified":
            return stratified.make_judge(plan, self.title, quota_K, self.bins)
        return ranked.make_judge(plan, self.title, quota_K, self.members)


def find_room(plan: Plan, clusters: int) -> Room:
    """What the verdicts that stand leave possible.

    Args:
        plan: reads `cluster`.
        clusters: how many.
    """
    counts_K2 = np.zeros((clusters, 2), np.int64)
    for counts in spread(partial(count_room, plan.run.store, clusters), plan.units, workers=plan.run.workers):
        counts_K2 += counts
    kept_K, new_K = counts_K2.T
    return Room(kept_K + new_K, kept_K)


def count_room(store: Store, clusters: int, unit: Unit) -> Ints:
    """Counts_K2 of one shard: the rows of each cluster that stand and were kept, and the new ones."""
    if unit.stands:
        table, counts_N = read_standing(store, unit)
    else:
        table, _ = read_unit(store, unit)
        counts_N = np.ones(table.num_rows, dtype=bool)
    cluster_n = table["cluster"].filter(pa.array(counts_N)).drop_null().to_numpy()
    counts_K2 = np.zeros((clusters, 2), np.int64)
    counts_K2[:, 0 if unit.stands else 1] = np.bincount(cluster_n, minlength=clusters)
    return counts_K2
