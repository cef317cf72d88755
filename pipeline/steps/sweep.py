"""`sweep`: the curves to choose k, epsilon and temperature by, before a pool is curated with them. Every row passes.

Reads a model's image embeddings. Output columns: `k<k>` int32 for each k, the cluster of a row among that many; null
where there is no embedding. Beside the parts lies `sweep.json`, and the manifest's info holds the same:

    rows            rows that entered
    clusters        for each k: `k`; `inertia`, the mean of 1 - similarity to the own centroid; `iterations`; `empty`,
                    clusters without members; and of the others `sizes`, `effective`, `largest_share`
    epsilons        null, or `k` and `points`: for each `epsilon` how many rows `semantic_dedup` would drop (`removed`),
                    and which `share` of all that is
    temperatures    null, or `k`, `keep` and `points`: for each `temperature` what `prune` with `method: dbp` would keep
                    of the clusters with members: `kept_share`, quota / size; `effective`; and how many clusters get the
                    lowest quota that is allowed and have more members (`at_floor`), or stay `whole`

`sizes` and `kept_share` are `min`, `q1`, `median`, `q3`, `max` over clusters. `effective` is how many clusters of equal
weight would be as diverse (`operators.evenness`).

Each clustering is an artifact `<step>.k<k>.clusters`, and the deduplication is `<step>.k<k>`.

Legend: K clusters, F those with members.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from operators.density import Density, densities, inter_distances, intra_distances, softmax
from operators.errors import InputError, UserError
from operators.evenness import effective_number, five_numbers
from operators.quotas import balance_floor, lower_bounds, solve_quotas
from pipeline.artifact import Artifact, publish_beside
from pipeline.clustering import KMeansOptions, KMeansSettings, check_init
from pipeline.run import Modality, Read, Run
from pipeline.selection import rows_to_keep
from pipeline.steps.base import Step, refuse_ignored, refuse_nightly
from pipeline.steps.clustered import check_nearest
from pipeline.steps.clusters import Fit, cluster, fit_of
from pipeline.steps.semantic_dedup import Epsilon, SemanticDedup
from pipeline.storage import to_json

Temperature = Annotated[float, Field(gt=0)]


class Sweep(Step, KMeansOptions):
    """Settings of the step: those of every clustering (`KMeansOptions`), and these.

    Attributes:
        model: whose image embeddings are clustered.
        clusters: each k to try, rising.
        epsilons: each epsilon of `semantic_dedup` to try, rising; one pass serves them all.
        dedup_clusters: the k that they are tried with; the middle one of `clusters` unless given.
        neighbour_clusters: as in `semantic_dedup`.
        temperatures: each temperature of `prune` with `method: dbp` to try, rising.
        quota_clusters: the k that they are tried with; the middle one of `clusters` unless given.
        keep_fraction, density, neighbours, class_balance: as in `prune` with `method: dbp`.
    """

    random: ClassVar[bool] = True

    step: Literal["sweep"]
    model: str
    clusters: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    epsilons: tuple[Epsilon, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    dedup_clusters: int | None = None
    neighbour_clusters: int = Field(default=0, ge=0)
    temperatures: tuple[Temperature, ...] = (0.02, 0.05, 0.1, 0.3, 1.0)
    quota_clusters: int | None = None
    keep_fraction: float = Field(default=0.4, gt=0, le=1)
    density: Density = "dintra*dinter"
    neighbours: int = Field(default=20, ge=1)
    class_balance: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("clusters", "epsilons", "temperatures"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} must rise, got {', '.join(map(str, values))}")
        for name in ("dedup_clusters", "quota_clusters"):
            if getattr(self, name) not in (None, *self.clusters):
                known = ", ".join(map(str, self.clusters))
                raise ValueError(f"{name} must be one of clusters ({known}), got {getattr(self, name)}")
        if not self.epsilons:
            refuse_ignored(self, ["dedup_clusters", "neighbour_clusters"], "with epsilons []")
        if not self.temperatures:
            unused = ["quota_clusters", "keep_fraction", "density", "neighbours", "class_balance"]
            refuse_ignored(self, unused, "with temperatures []")
        if self.density != "dintra*dinter":
            refuse_ignored(self, ["neighbours"], f"with density {self.density}")
        check_nearest(self)
        check_init(self.init, self.clusters[-1])
        return self

    @property
    def judges(self) -> bool:
        """Never."""
        return False

    def check_nightly(self) -> None:
        """Refused: each curve is one of all rows, and so of none of the nights."""
        refuse_nightly(self, "a sweep", "it compares settings on all rows at once; run it by itself")

    @property
    def clusterings(self) -> Sequence[str]:
        """One for each k."""
        return [self._inner(k) for k in self.clusters]

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's images."""
        return ((self.model, "image"),)

    def run(self, run: Run) -> Artifact:
        """Finds or makes the curves."""
        if self.clusters[-1] > run.num_entering:
            raise InputError(
                f"{self.title}.clusters must be at most the {run.num_entering} rows that enter the step, "
                f"got {self.clusters[-1]}"
            )
        assigned = {k: cluster(run, self._inner(k), self.model, self._kmeans(k)) for k in self.clusters}
        dedup = self._dedup(self.dedup_clusters or self._middle).run(run) if self.epsilons else None
        identity = self.identity(run) | {"dedup": dedup and dedup.digest}
        reads = [Read(artifact, {"cluster": f"k{k}"}) for k, artifact in assigned.items()]
        plan = run.plan(self.title, identity, reads, reduces=True)
        if published := plan.published:
            return published
        quota_fit = assigned[self.quota_clusters or self._middle].info
        swept = {
            "rows": run.num_entering,
            "clusters": [measure_clusters(k, fit_of(run.store, artifact.info)) for k, artifact in assigned.items()],
            "epsilons": dedup and self._epsilon_curve(dedup),
            "temperatures": self._temperature_curve(run, fit_of(run.store, quota_fit)) if self.temperatures else None,
        }
        path = f"{plan.folder}/sweep.json"
        publish_beside(run.store, path, to_json(swept))
        return plan.map_attributes(same, info={"sweep": path, **swept})

    @property
    def _middle(self) -> int:
        return self.clusters[(len(self.clusters) - 1) // 2]

    def _inner(self, k: int) -> str:
        return f"{self.title}.k{k}"

    def _kmeans(self, k: int) -> KMeansSettings:
        return KMeansSettings(clusters=k, **self._options | {"search": "exact"})

    @property
    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in KMeansOptions.model_fields}

    def _dedup(self, k: int) -> SemanticDedup:
        """One pass over all epsilons. Called like the clustering of the same k, it finds that instead of making one."""
        step = SemanticDedup(
            step="semantic_dedup",
            model=self.model,
            clusters=k,
            epsilon=self.epsilons[-1],
            epsilons=self.epsilons,
            neighbour_clusters=self.neighbour_clusters,
            **self._options,
        )
        return step.model_copy(update={"name": self._inner(k)})

    def _epsilon_curve(self, dedup: Artifact) -> dict[str, Any]:
        rows = dedup.total("in")
        removed = zip(dedup.info["epsilons"], dedup.info["removed"], strict=True)
        points = [{"epsilon": epsilon, "removed": gone, "share": gone / max(rows, 1)} for epsilon, gone in removed]
        return {"k": self.dedup_clusters or self._middle, "points": points}

    def _temperature_curve(self, run: Run, fit: Fit) -> dict[str, Any]:
        keep = rows_to_keep(self.title, run.num_entering, self.keep_fraction, None)
        try:
            points = self.measure_quotas(fit, keep)
        except UserError as error:
            raise type(error)(f"{self.title}: {error}") from error
        return {"k": len(fit.sizes_K), "keep": keep, "points": points}

    def measure_quotas(self, fit: Fit, keep: int) -> list[dict[str, Any]]:
        """What each temperature keeps of a clustering's clusters.

        Args:
            fit: the clustering.
            keep: rows to keep of all.

        Raises:
            ConfigError: there are fewer rows with an embedding.
        """
        sizes_K = fit.sizes_K
        intra_K = intra_distances(fit.similarity_K, sizes_K)
        inter_K = inter_distances(fit.centroids_KD, self.neighbours)
        density_K = densities(self.density, intra_K, inter_K, sizes_K)
        floor = balance_floor(keep, len(sizes_K), self.class_balance)
        lowest_K = lower_bounds(sizes_K, keep, floor)
        filled_F = np.flatnonzero(sizes_K)
        points = []
        for temperature in self.temperatures:
            quota_K = solve_quotas(softmax(density_K, temperature, sizes_K), sizes_K, keep, floor)
            at_floor_K = (quota_K == lowest_K) & (quota_K < sizes_K)
            points.append(
                {
                    "temperature": temperature,
                    "kept_share": five_numbers(quota_K[filled_F] / sizes_K[filled_F])._asdict(),
                    "effective": effective_number(quota_K),
                    "at_floor": int(np.count_nonzero(at_floor_K)),
                    "whole": int(np.count_nonzero(quota_K[filled_F] == sizes_K[filled_F])),
                }
            )
        return points


def measure_clusters(k: int, fit: Fit) -> dict[str, Any]:
    """The inertia of a clustering and how its sizes are spread."""
    filled_F = fit.sizes_K[fit.sizes_K > 0]
    rows = int(filled_F.sum())
    return {
        "k": k,
        "inertia": 1.0 - math.fsum(fit.similarity_K.tolist()) / rows,
        "iterations": fit.iterations,
        "empty": k - filled_F.size,
        "sizes": five_numbers(filled_F)._asdict(),
        "effective": effective_number(filled_F),
        "largest_share": int(filled_F.max()) / rows,
    }


def same(table: pa.Table) -> pa.Table:
    """The clusters of each row, as they were read."""
    return table
