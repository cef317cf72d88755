"""`prune` with `method: hierarchical`: as even over concepts as the pool allows, at every level of a hierarchy.

Clusters of samples are clustered again, and those again, each level balanced by resampling. What is to be kept is
divided evenly over the top clusters, each share evenly over the clusters below, and so on; a cluster with fewer samples
than its share keeps them all (Vo et al. 2024, arXiv 2405.15613). The paper draws the members of a cluster, or takes the
nearest ones: `members: random` or `easy`.

Columns, reasons and details: `by_cluster`. In `clusters.parquet`, `density` and `probability` are the same for all
clusters that have members.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.density import densities, softmax
from operators.hierarchical_quotas import hierarchical_quotas
from pipeline.clustering import KMeansSettings
from pipeline.hierarchy import check_levels
from pipeline.resampling import Resampling
from pipeline.steps.base import refuse_nightly
from pipeline.steps.clusters import Fit
from pipeline.steps.prune.by_cluster import ByCluster, Distances, Room, Weights


class HierarchicalPrune(ByCluster):
    """Settings of the method.

    Attributes:
        levels: clusters of each level above `clusters`, from the lowest up.
        resampling: how the levels are balanced.
    """

    method: Literal["hierarchical"]
    levels: tuple[int, ...] = Field(min_length=1)
    resampling: Resampling = Resampling()

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if self.merge is not None:
            raise ValueError("merge must not be set for method hierarchical, whose levels take its place")
        assert self.clusters is not None
        check_levels(self.clusters, self.levels)
        return self

    @property
    def kmeans(self) -> KMeansSettings:
        """The settings as k-means takes them, with the levels above."""
        return super().kmeans.model_copy(update={"levels": self.levels, "resampling": self.resampling})

    def check_nightly(self) -> None:
        """Refused: quotas of a hierarchy cannot start from what is kept already."""
        refuse_nightly(self, "method hierarchical", "its quotas are divided from the top down over all rows at once")

    def weigh(self, fit: Fit, distances: Distances) -> Weights:
        """The same for all that have members."""
        density_K = densities("uniform", distances.intra_K, distances.inter_K, fit.sizes_K)
        return Weights(density_K, softmax(density_K, 1.0, fit.sizes_K))

    def allot(self, fit: Fit, probability_K: NDArray[np.float64], keep: int, room: Room) -> NDArray[np.int64]:
        """Even at each level, from the top down."""
        return hierarchical_quotas(fit.parents, fit.sizes_K, keep)
