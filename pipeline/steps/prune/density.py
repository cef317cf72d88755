"""`prune` with `method: dbp`: density-based pruning (Abbas et al. 2024, arXiv 2401.04578).

Quotas follow the softmax of each cluster's density, as near to it in least squares as sizes allow (`operators.density`,
`operators.quotas`). Columns, reasons and details: `by_cluster`.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.density import Density, densities, softmax
from operators.quotas import balance_floor, solve_quotas
from pipeline.steps.base import refuse_ignored
from pipeline.steps.clusters import Fit
from pipeline.steps.prune.by_cluster import NEIGHBOURS, ByCluster, Distances, Room, Weights


class DensityPrune(ByCluster):
    """Settings of the method.

    Attributes:
        density: what the softmax is taken of.
        temperature: of the softmax; small ones sharpen the differences, large ones flatten them.
        neighbours: nearest other centroids that d_inter is the mean over (the paper's l).
        class_balance: 0 lets densities decide alone; b > 0 gives each cluster at least floor(b x kept / k).
    """

    method: Literal["dbp"]
    density: Density = "dintra*dinter"
    temperature: float = Field(default=0.1, gt=0)
    neighbours: int = Field(default=NEIGHBOURS, ge=1)
    class_balance: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_neighbours(self) -> Self:
        if self.density != "dintra*dinter":
            refuse_ignored(self, ["neighbours"], f"with density {self.density}")
        return self

    @property
    def num_neighbours(self) -> int:
        """The setting."""
        return self.neighbours

    def weigh(self, fit: Fit, distances: Distances) -> Weights:
        """The softmax of the densities."""
        density_K = densities(self.density, distances.intra_K, distances.inter_K, fit.sizes_K)
        return Weights(density_K, softmax(density_K, self.temperature, fit.sizes_K))

    def allot(self, fit: Fit, probability_K: NDArray[np.float64], keep: int, room: Room) -> NDArray[np.int64]:
        """The quotas nearest to the softmax, above the floor of `class_balance`."""
        floor = balance_floor(keep, len(fit.sizes_K), self.class_balance)
        return solve_quotas(probability_K, room.most_K, keep, floor, room.kept_K)
