"""`prune` with `method: cluster_balanced` or `cluster_proportional`: quotas without a look at the densities.

The proportional one keeps the same share of each cluster, the "percentage per cluster" of studies on small images; with
`members: random` it is the stratified random baseline. Quotas are the largest remainders of share x size and sum to
exactly what is to be kept, where rounding every cluster up would keep more; a cluster keeps at least one member as long
as there are enough for all. Columns, reasons and details: `by_cluster`; `density` is what the quotas are given by.
"""

from typing import Literal

import numpy as np

from operators.density import densities, softmax
from pipeline.steps.clusters import Fit
from pipeline.steps.prune.by_cluster import ByCluster, Distances, Weights


class BalancedPrune(ByCluster):
    """Settings of the method: all clusters get the same quota, as far as their sizes allow."""

    method: Literal["cluster_balanced"]

    def weigh(self, fit: Fit, distances: Distances) -> Weights:
        """The same for all that have members."""
        density_K = densities("uniform", distances.intra_K, distances.inter_K, fit.sizes_K)
        return Weights(density_K, softmax(density_K, 1.0, fit.sizes_K))


class ProportionalPrune(ByCluster):
    """Settings of the method: every cluster keeps the same share."""

    method: Literal["cluster_proportional"]

    def weigh(self, fit: Fit, distances: Distances) -> Weights:
        """In proportion to the sizes."""
        density_K = densities("clustersize", distances.intra_K, distances.inter_K, fit.sizes_K)
        return Weights(density_K, fit.sizes_K / np.maximum(fit.sizes_K.sum(), 1))
