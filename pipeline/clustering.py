"""What goes into k-means and what comes out. Apart from `pipeline.kmeans`, whose import of torch takes 2 s.

Legend: K clusters, D dimensions.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.hierarchy import Merge
from pipeline.resampling import Resampling

EXACT_CLUSTERS = 131_072
"""Up to here an exact search takes no longer than one by way of groups that finds 99.9 % (docs/decisions.md)."""

MOST_AUTO_CLUSTERS = 50_000

MOST_SEEDED_CLUSTERS = {"kmeans++": 10_000, "kmeans||": 20_000}
"""D^2 sampling draws one centroid after the other, each with a look at all candidates (16 k of k-means++, 3 k of
k-means||), in one process: k^2 work, some 2e13 operations at D = 512 for either number, and ten times as much for three
times the clusters."""


class KMeansOptions(BaseModel):
    """How to cluster, apart from the number of clusters.

    Attributes:
        init: the first centroids: rows drawn at random; by `kmeans++` from a sample of 16 rows a cluster; or by
            `kmeans||` from all rows, in four passes of oversampling.
        metric: `spherical` centroids are unit vectors, and rows go to the one with the largest cosine; `euclidean` ones
            are means, and rows go to the one at the smallest distance.
        points_per_cluster: fit on this many rows for each cluster, drawn at random, and assign all rows to the
            centroids in the end; None fits on all rows.
        search: how a row finds its centroid: among all of them (`exact`), or among those of the groups of centroids
            nearest to it (`two_level`), which is faster where there are very many and misses some; its recall is
            measured and recorded. `auto` is exact up to 131,072 clusters.
        iterations: updates of the centroids at most.
        tolerance: stop once an update lowers the inertia by no more than this share of it (unless that update split a
            cluster, which may pay off later).
        merge: how to merge the clusters into concepts, if at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    init: Literal["random", "kmeans++", "kmeans||"] = "random"
    metric: Literal["spherical", "euclidean"] = "spherical"
    points_per_cluster: Annotated[int, Field(ge=1)] | None = None
    search: Literal["auto", "exact", "two_level"] = "auto"
    iterations: Annotated[int, Field(ge=0)] = 20
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    merge: Merge | None = None

    @model_validator(mode="after")
    def _check_spherical(self) -> Self:
        if self.merge is None and not getattr(self, "levels", None):  # `levels` is a setting of some who inherit these
            return self
        for name, needed in (("metric", "spherical"), ("search", "exact")):
            if getattr(self, name) not in (needed, "auto"):
                got = getattr(self, name)
                raise ValueError(f"{name} must be {needed} where clusters are merged or have levels above, got {got}")
        return self


class KMeansSettings(KMeansOptions):
    """How to cluster, into how many clusters.

    Attributes:
        clusters: k, or `auto` for the square root of the number of rows that enter, 50,000 at most.
        levels: clusters of the levels above, each of which clusters the centroids of the one below.
        resampling: how all levels are balanced, where there are any.
    """

    clusters: Annotated[int, Field(ge=1)] | Literal["auto"]
    levels: tuple[int, ...] = ()
    resampling: Resampling = Resampling()

    @model_validator(mode="after")
    def _check_init(self) -> Self:
        if self.clusters != "auto":
            check_init(self.init, self.clusters)
        return self

    @property
    def k(self) -> int:
        """The number of clusters, once it is known."""
        assert self.clusters != "auto"
        return self.clusters

    @property
    def two_level(self) -> bool:
        """Whether rows find their centroids by way of groups."""
        large = self.k > EXACT_CLUSTERS and not (self.merge or self.levels)
        return self.search == "two_level" or (self.search == "auto" and large)

    def decided(self, num_rows: int) -> Self:
        """The same settings with nothing left open.

        `auto` is round(sqrt(rows)), from 1 to 50,000: assigning N rows to k centroids takes N k products and comparing
        them inside the clusters N^2 / k, which add up to the least at k = sqrt(N). Published clusterings go up to
        50,000 (440 million rows, SemDeDup).
        """
        k = min(max(1, round(math.sqrt(num_rows))), MOST_AUTO_CLUSTERS) if self.clusters == "auto" else self.clusters
        decided = self.model_copy(update={"clusters": k})
        return decided.model_copy(update={"search": "two_level" if decided.two_level else "exact"})


def check_init(init: str, clusters: int) -> None:
    """Raises ValueError where the first centroids would take hours to draw; for validators."""
    most = MOST_SEEDED_CLUSTERS.get(init, clusters)
    if clusters > most:
        raise ValueError(f"init must be random for more than {most:,} clusters, got {init} for {clusters:,}")


@dataclass(frozen=True)
class KMeansFit:
    """The centroids, and what an assignment of all rows to exactly these centroids says.

    Attributes:
        centroids_KD: float64 on the 2^-28 grid; unit rows where the metric is spherical.
        inertia: the mean of 1 - similarity of the rows that were fitted on, under the first centroids and after each
            update. Similarity is the cosine, or for Euclidean centroids 1 less half the squared distance
            (`operators.kmeans`).
        iterations: updates that were made.
        counts_K: int64, rows of each cluster; may hold zeros.
        similarity_K: float64, the summed similarity of the rows of each cluster, so d_intra is 1 - similarity / count.
        rows: how many were fitted on.
        recall: the share of rows (a sample of 4,096) whose centroid an exact search finds as well; None where the
            search was exact.
    """

    centroids_KD: NDArray[np.float64]
    inertia: list[float]
    iterations: int
    counts_K: NDArray[np.int64]
    similarity_K: NDArray[np.float64]
    rows: int = 0
    recall: float | None = None
