"""`semantic_dedup`: of samples whose images are nearly the same to a model, one stays (Abbas et al. 2023, 2303.09540).

Clusters the model's image embeddings, then compares the members of each cluster; two are near when the exact cosine of
their stored embeddings is greater than 1 - epsilon. `operators.duplicates` says who stays.

Reads a model's image embeddings and, for `keep: best_score`, a score. Verdict reason: `semantic_duplicate`. Details:
`duplicate_of` (in `cover` mode a sample that stays), `similarity` to it, `group_size` (members of the connected group).
A sample without an embedding is near nothing and stays.

The manifest's info has the curve: `epsilons`, ascending, and how many samples each would have `removed`;
`group_sizes`: how many groups have 2 to 3, 4 to 7, 8 to 15, ... members; and `groups`: Parquet files in the workspace
with a row for each member of each group of two or more: `group` (the uid of its first member), `size`, `uid`, `kept`.

Where verdicts of an earlier run stand, the rows that it kept come first and stay; those that it dropped take part in
mode `reference` alone. New rows are compared with these and with each other, in the clusters that hold new rows (and
their neighbours). `removed` and `group_sizes` then add up what each run found, also of shards that are gone since;
`groups` are those of the latest.
"""

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.hashing import keyed_hash
from operators.selection import order_key
from operators.uids import join_uids, split_uids
from pipeline.artifact import Artifact
from pipeline.columns import uid_rows
from pipeline.duplicates.layout import lay_out, meeting_new
from pipeline.findings import Findings, positions_of
from pipeline.fold import fold
from pipeline.run import Modality, Plan, Read, Run
from pipeline.steps.base import Stands, reasons
from pipeline.steps.clustered import NearestClustered
from pipeline.steps.clusters import Fit, cluster, fit_of
from pipeline.units import Verdicts

if TYPE_CHECKING:
    from pipeline.duplicates.search import Duplicates  # imports torch

Epsilon = Annotated[float, Field(ge=5e-4, le=0.5)]
"""1 - cosine. Stored rows have lengths within about 5e-4 of 1, so less says nothing of the images."""

Keep = Literal["hard", "easy", "random", "best_score"]

_REASON = "semantic_duplicate"

_BIN_BYTES = 400 * 2**20
"""What the rows that travel together may take in a task."""

_WORTH_A_TASK = 25_000
"""Rows of a bin at least, where memory allows them."""


class SemanticDedup(NearestClustered):
    """Settings of the step. Those of the clustering, and these.

    Attributes:
        epsilon: samples are near when 1 - cosine is less; larger ones remove more.
        epsilons: others, for the curve of removed samples against epsilon. They cost little.
        mode: `cover`: each sample that goes has one that stays within epsilon, and no two that stay are near.
            `reference`: as published, a sample goes when any sample before it is near, even one that goes itself.
        keep: who comes first and so stays: the farthest from the centroid, the nearest, any, or the highest score.
        score: name of the score step, for `keep: best_score`; samples without a score come last.
        neighbour_clusters: also compare with the members of that many nearest clusters, for duplicates that a border
            between clusters parts.
        largest: a cluster with more members is cut by k-means again, and all pairs across the cuts are still compared.
    """

    random: ClassVar[bool] = True
    stands: ClassVar[Stands] = "always"

    step: Literal["semantic_dedup"]
    clusters: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    epsilon: Epsilon
    epsilons: tuple[Epsilon, ...] = ()
    mode: Literal["cover", "reference"] = "cover"
    keep: Keep = "hard"
    score: str | None = None
    neighbour_clusters: int = Field(default=0, ge=0)
    largest: int = Field(default=100_000, ge=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model is None:
            raise ValueError("needs model")
        if (self.keep == "best_score") != (self.score is not None):
            raise ValueError(f"must name a score with keep best_score only, got keep {self.keep}, score {self.score}")
        return self

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's images."""
        assert self.model is not None
        return ((self.model, "image"),)

    def scores(self) -> Sequence[str]:
        """The score that decides who stays, if any."""
        return () if self.score is None else (self.score,)

    def identity(self, run: Run) -> dict[str, Any]:
        """How clusters are cut changes no verdict."""
        identity = super().identity(run)
        del identity["largest"]
        return identity

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        assert self.model is not None
        assigned = cluster(run, self.title, self.model, self.kmeans)
        reads = [
            Read(run.samples, {"uid": "uid", "shard": "shard", "row": "row"}),
            Read(assigned, {"cluster": "cluster", "similarity": "similarity"}),
            Read(run.embeddings[self.model, "image"], {"embedding": "embedding"}),
            *([Read(run.artifacts[self.score], {"score": "score"})] if self.score else []),
        ]
        plan = run.plan(self.title, self.identity(run), reads, reduces=True)
        return plan.published or self._find(plan, fit_of(run.store, assigned.info), assigned.info["fit"])

    def _find(self, plan: Plan, fit: Fit, clusters: str) -> Artifact:
        epsilons = sorted({self.epsilon, *self.epsilons})
        new_K = fit.sizes_K
        if plan.standing:
            count = partial(count_members, len(fit.sizes_K))
            new_K = fold(plan.new, count, np.add) if plan.new.units else np.zeros_like(fit.sizes_K)
        found = self._search(plan, fit, clusters, new_K) if new_K.any() else nothing_found(plan, len(epsilons))
        info = {"epsilons": epsilons, "groups": found.groups, "clusters": clusters}
        info |= _added(plan.earlier if plan.standing else None, {"removed": found.removed, "group_sizes": found.sizes})
        artifact = plan.map_verdicts(partial(judge, found.findings), info=info)
        stood = sum(part.counts.get(f"dropped:{_REASON}", 0) for part in plan.standing.values())
        dropped = artifact.totals("dropped").get(_REASON, 0) - stood
        removed = found.removed[epsilons.index(self.epsilon)]
        assert dropped == removed, f"{dropped} rows were dropped, {removed} found to be duplicates"
        return artifact

    def _search(self, plan: Plan, fit: Fit, clusters: str, new_K: NDArray[np.int64]) -> "Duplicates":
        """The duplicates among the rows that take part, of whom each cluster has so many new ones."""
        from operators.borders import neighbour_pairs
        from operators.duplicates import Rule
        from operators.near_pairs import thresholds
        from pipeline.duplicates.rows import Job
        from pipeline.duplicates.search import find_duplicates
        from pipeline.duplicates.splits import split_giants

        run = plan.run
        epsilons = sorted({self.epsilon, *self.epsilons})
        folder = f"{plan.folder}/attempt-{uuid.uuid4().hex}"
        searched_K, neighbours_P2 = None, neighbour_pairs(fit.centroids_KD, self.neighbour_clusters)
        if plan.standing:
            searched_K, neighbours_P2 = meeting_new(new_K, neighbours_P2)
        sizes_K = fit.sizes_K if searched_K is None else np.where(searched_K, fit.sizes_K, 0)
        splits = split_giants(plan, folder, sizes_K, self.largest)
        in_a_bin = rows_per_bin(int(sizes_K.sum()), fit.centroids_KD.shape[1], run.workers)
        job = Job(
            store=run.store,
            folder=folder,
            layout=lay_out(sizes_K, splits, neighbours_P2, in_a_bin),
            rule=Rule(self.mode, thresholds(np.array(epsilons)), epsilons.index(self.epsilon), run.threads),
            clusters=clusters,
            epsilon=epsilons[-1],
            priority=partial(priority, self.keep, run.seed, self.title),
            searched_K=searched_K,
        )
        return find_duplicates(plan, job)


def row_bytes(dim: int) -> int:
    """What a row of so many dimensions takes in a task: the embedding as it came, joined, ordered and rounded."""
    return 8 * dim + 200


def rows_per_bin(rows: int, dim: int, workers: int) -> int:
    """How many of these rows travel together: as many as memory allows, but so that every worker gets four bins."""
    at_most = max(1, _BIN_BYTES // row_bytes(dim))
    return min(at_most, max(_WORTH_A_TASK, -(-rows // (4 * workers))))


def nothing_found(plan: Plan, epsilons: int) -> "Duplicates":
    """What there is to say where no row is new."""
    from pipeline.duplicates.rows import FOUND
    from pipeline.duplicates.search import Duplicates

    shards = tuple(unit.shard for unit in plan.units)
    return Duplicates(Findings(plan.run.store, f"{plan.folder}/nothing", shards, FOUND), [], [0] * epsilons, [])


def count_members(clusters: int, table: pa.Table) -> NDArray[np.int64]:
    """Rows_K: how many rows of a table each cluster has."""
    return np.bincount(table["cluster"].drop_null().to_numpy(), minlength=clusters)


def _added(earlier: Artifact | None, found: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """What was counted now, on top of what was counted by the run whose verdicts stand."""
    before: Mapping[str, Any] = earlier.info if earlier else {}
    return {
        name: [a + b for a, b in zip_longest(before.get(name, ()), counts, fillvalue=0)]
        for name, counts in found.items()
    }


def priority(keep: Keep, seed: int, title: str, table: pa.Table) -> NDArray[np.uint64]:
    """What orders samples besides their uid; the lowest comes first."""
    if keep == "random":
        return keyed_hash(*split_uids(uid_rows(table["uid"])), seed, title)
    if keep == "best_score":
        score_N = pc.fill_null(table["score"], -np.inf).to_numpy()
        return order_key(score_N, descending=True)
    return order_key(table["similarity"].to_numpy(), descending=keep == "easy")


def judge(findings: Findings, table: pa.Table) -> Verdicts:
    """Drops the rows that were found to be duplicates."""
    kept_N = np.ones(table.num_rows, dtype=bool)
    found, at_M = findings.schema.empty_table(), np.zeros(0, np.int64)
    if table.num_rows:
        at_M, found = positions_of(table, findings.of(table["shard"][0].as_py()))
        kept_N[at_M] = False
    firsts = join_uids(found["first_high"].to_numpy(), found["first_low"].to_numpy()).hex()
    names = pa.array([firsts[i : i + 32] for i in range(0, len(firsts), 32)], pa.string())
    place_N = np.full(table.num_rows, -1)
    place_N[at_M] = np.arange(len(at_M))
    index = pa.array(place_N, mask=kept_N)
    columns: Mapping[str, pa.Array] = {
        "duplicate_of": names.take(index),
        "similarity": found["similarity"].combine_chunks().take(index),
        "group_size": found["group_size"].combine_chunks().take(index),
    }
    details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return Verdicts(kept_N, reasons(kept_N, _REASON), details)
