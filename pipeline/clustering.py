"""What goes into k-means and what comes out. Apart from `pipeline.kmeans`, whose import of torch takes 2 s.

Legend: K clusters, D dimensions.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class KMeansOptions(BaseModel):
    """How to cluster, apart from the number of clusters.

    Attributes:
        iterations: updates of the centroids at most.
        tolerance: stop once an update lowers the inertia by no more than this share of it (unless that update split a
            cluster, which may pay off later).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: Annotated[int, Field(ge=0)] = 20
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0


class KMeansSettings(KMeansOptions):
    """How to cluster, into how many clusters."""

    clusters: int = Field(ge=1)


@dataclass(frozen=True)
class KMeansFit:
    """The centroids, and what the last assignment says of exactly these centroids.

    Attributes:
        centroids_KD: float64 unit rows on the 2^-28 grid.
        inertia: the mean of 1 - cos under the first centroids, and after each update.
        iterations: updates that were made.
        counts_K: int64, rows of each cluster; may hold zeros.
        similarity_K: float64, the sum of cos over the rows of each cluster, so d_intra is 1 - similarity / count.
    """

    centroids_KD: NDArray[np.float64]
    inertia: list[float]
    iterations: int
    counts_K: NDArray[np.int64]
    similarity_K: NDArray[np.float64]
