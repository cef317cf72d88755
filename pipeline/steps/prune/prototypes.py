"""`prune` with `method: prototypes`: rows far from (or near) the prototype that stands for their kind.

Sorscher et al. 2022, arXiv 2206.14486, section 5: prototypes are the centroids of k-means, a row's difficulty is its
cosine distance to the nearest one; the hardest rows stay where data is plenty, the easiest where it is scarce.
`difficulty: margin` compares, in Euclidean distance, a row's own prototype with the two nearest others. Prototypes may
be the means of labelled classes instead, and may come from a separate target set.

Reads a model's image embeddings and, with `label`, the metadata. Verdict reasons: `over_quota`, `no_embedding`,
`no_label`, `unknown_label` (no sample of the target has it). Details: `cluster` or `class` or both, `difficulty` (what
ranks the row), `threshold` (that of the last row kept of its group), `quota` (of its group), and with `difficulty:
margin` also `distance` (to its own prototype) and `other` (the nearest other prototype).
Beside the verdicts lies `prototypes.parquet`, a row a prototype: `prototype`, `name`, `size`, `kept`.
The distances themselves are an artifact of their own: `distances`.

Legend: G groups, P prototypes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.errors import InputError
from operators.prototypes import num_above_quantile
from operators.quotas import solve_quotas
from pipeline.artifact import Artifact, parquet_bytes, publish_beside
from pipeline.clustering import KMeansOptions
from pipeline.config.problems import KeyProblem
from pipeline.fold import fold
from pipeline.paths import resolve_source
from pipeline.pool import Source
from pipeline.references import check_reference
from pipeline.run import Plan, Read, Run
from pipeline.selection import plan_cutoffs, rows_to_keep
from pipeline.steps.base import refuse_ignored, refuse_nightly
from pipeline.steps.clustered import Clustered
from pipeline.steps.prune.base import Prune
from pipeline.steps.prune.difficulty import Judge, Ranking, balanced_quotas, count_prototypes
from pipeline.steps.prune.distances import Grouping, Measure, Prototypes, measure, read_prototypes

Ints = NDArray[np.int64]

QUANTILE = 0.9


class PrototypePrune(Prune, Clustered):
    """Settings of the method, besides those of the clustering. Where nothing says how much to keep, `QUANTILE` does.

    Attributes:
        clusters: prototypes are the centroids of so many clusters; without it, the means of the classes.
        label: field of the metadata that names a row's class.
        target: images whose clusters or classes are the prototypes, instead of the pool's own.
        difficulty: `distance`, 1 - cosine to the row's own prototype; or `margin`, the Euclidean distance to it less
            those to the two nearest others (and, for `members: easy`, the Euclidean distance alone).
        members: which rows stay: those of high difficulty or those of low.
        quantile: keep what lies above this quantile of the difficulties (below it, mirrored, for `members: easy`).
        per: rows are ranked within each cluster, within each class, or all together. Default: what prototypes are of.
        class_balance: with `per: global`, each class (without `label`: each cluster) keeps at least this share of an
            even share, as long as it has as many rows.
    """

    method: Literal["prototypes"]
    label: str | None = Field(default=None, min_length=1)
    target: Source | None = None
    difficulty: Literal["distance", "margin"] = "distance"
    members: Literal["hard", "easy"] = "hard"
    quantile: float | None = Field(default=None, ge=0, lt=1)
    per: Literal["cluster", "class", "global"] | None = None
    class_balance: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model is None or (self.clusters is None and self.label is None):
            raise ValueError("needs model, and clusters or label")
        if self.difficulty == "margin" and isinstance(self.clusters, int) and self.clusters < 3:
            raise ValueError(f"needs at least 3 clusters for difficulty: margin, got {self.clusters}")
        if self.clusters is None:
            refuse_ignored(self, KMeansOptions.model_fields, "without clusters")
        if self.difficulty == "margin" and self.merge and (self.merge.to or 3) < 3:
            raise KeyProblem(("merge", "to"), f"must be at least 3 for difficulty: margin, got {self.merge.to}")
        given = [n for n in ("keep_fraction", "keep", "quantile") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"needs at most one of keep_fraction, keep and quantile, got {' and '.join(given)}")
        if self.per == "cluster" and self.clusters is None:
            raise ValueError("needs clusters for per: cluster")
        if self.per == "class" and self.label is None:
            raise ValueError("needs label for per: class")
        if self.class_balance and self.per != "global":
            raise ValueError("needs per: global for class_balance; otherwise each group has its own share already")
        if self.clusters is not None and self.label is not None and self.grouping != "class":
            raise ValueError("needs per: class, or class_balance, to use label beside clusters")
        return self

    @property
    def clusterings(self) -> Sequence[str]:
        """That of the pool, unless a target is clustered in its place."""
        return () if self.target else super().clusterings

    @property
    def grouping(self) -> Grouping:
        """What rows are compared within."""
        if self.per in ("cluster", "class"):
            return self.per
        if self.per is None:
            return "class" if self.clusters is None else "cluster"
        if not self.class_balance:
            return None
        return "class" if self.label else "cluster"

    def resolved(self) -> Self:
        """The same settings with the target's paths absolute."""
        return self.model_copy(update={"target": self.target and resolve_source(self.target)})

    def check(self) -> None:
        """Checks that the target is there."""
        if self.target:
            check_reference([self.target])

    def check_nightly(self) -> None:
        """Refused: prototypes and quantiles are of all rows, and nothing of them is kept."""
        refuse_nightly(self, "method prototypes", "its prototypes and quantiles are found over all rows at once")

    def identity(self, run: Run) -> dict[str, Any]:
        """The target is left out: what is read of it counts, not where it lies."""
        return {key: value for key, value in super().identity(run).items() if key != "target"}

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        assert self.model is not None
        margin = self.difficulty == "margin"
        kmeans = self.kmeans if self.clusters is not None else None
        what = Measure(self.title, self.model, kmeans, self.label, margin, self.grouping)
        measured = measure(run, what, self.target)
        names = ["prototype", "group", "distance", "lacks"] + (["margin", "other"] if margin else [])
        reads = [Read(run.samples, {"uid": "uid"}), Read(measured, {name: name for name in names})]
        plan = run.plan(self.title, self.identity(run), reads, reduces=True)
        if published := plan.published:
            return published

        prototypes = read_prototypes(run.store, measured.info["prototypes"])
        groups = {None: 1, "cluster": len(prototypes.vectors_PD), "class": len(prototypes.classes)}
        hardest = self.members == "hard"
        ranking = Ranking("margin" if margin and hardest else "distance", hardest, groups[self.grouping])
        quota_G = self._quotas(plan, ranking)
        cutoffs = plan_cutoffs(plan, ranking.keys, quota_G)
        count = partial(count_prototypes, ranking, cutoffs, len(prototypes.vectors_PD))
        path = f"{plan.folder}/prototypes.parquet"
        publish_beside(run.store, path, parquet_bytes(self._table(prototypes, fold(plan, count, np.add))))
        info = {"prototypes": path, "reference": measured.info.get("reference")}
        return plan.map_verdicts(Judge(ranking, cutoffs, quota_G, self._details(prototypes)), info=info)

    def _quotas(self, plan: Plan, ranking: Ranking) -> Ints:
        """How many rows of each group stay."""
        size_G = fold(plan, ranking.count, np.add)
        keep = self._rows_to_keep(plan.run.num_entering, size_G)
        if self.class_balance:
            return balanced_quotas(plan, ranking, size_G, int(keep.sum()), self.class_balance)
        if len(keep) == len(size_G):
            return keep
        return solve_quotas(size_G / max(1, int(size_G.sum())), size_G, int(keep[0]))

    def _rows_to_keep(self, entering: int, size_G: Ints) -> Ints:
        """How many rows stay in all, or, above a quantile, of each group.

        Raises:
            InputError: more than have a difficulty.
        """
        if self.keep_fraction is None and self.keep is None:
            ranked_G = size_G.sum(keepdims=True) if self.per == "global" else size_G
            return num_above_quantile(ranked_G, QUANTILE if self.quantile is None else self.quantile)
        keep, usable = rows_to_keep(self.title, entering, self.keep_fraction, self.keep), int(size_G.sum())
        if keep > usable:
            has = "an embedding and a known label" if self.label else "an embedding"
            raise InputError(
                f"{self.title} must keep at most the {usable} rows that have {has}, got {keep} of the {entering} that "
                "enter the step"
            )
        return np.array([keep])

    def _table(self, prototypes: Prototypes, counts_P2: Ints) -> pa.Table:
        names = prototypes.classes if self.clusters is None else [str(i) for i in range(len(counts_P2))]
        ids = np.arange(len(counts_P2), dtype=np.int32)
        return pa.table({"prototype": ids, "name": list(names), "size": counts_P2[:, 0], "kept": counts_P2[:, 1]})

    def _details(self, prototypes: Prototypes) -> dict[str, tuple[str, pa.Array | None]]:
        """Name of each detail -> the column that it is, and the names of its ids where these are classes."""
        classes = pa.array(prototypes.classes, pa.string())
        kind = ("class", classes) if self.clusters is None else ("cluster", None)
        details = {kind[0]: ("prototype", kind[1])}
        if self.clusters is not None and self.grouping == "class":
            details["class"] = ("group", classes)
        if self.difficulty == "margin":
            details |= {"distance": ("distance", None), "other": ("other", kind[1])}
        return details
