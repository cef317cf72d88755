"""How diverse a set is, by the clusters that its samples fall into: what an over-fitted filter loses first.

Fang et al. 2023 (arXiv 2309.17425) judge a filter by the set that it induces. One that keeps what resembles a few
trusted pictures scores its pool well and leaves few concepts of it; accuracy on the trusted set cannot show that.

Legend: K clusters.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.evenness import effective_number


class Diversity(NamedTuple):
    """Of one set.

    Attributes:
        samples: how many were counted.
        entropy: Shannon's, of the clusters' shares, in nats; from 0 to ln K.
        effective: exp of it: how many clusters of equal size would be as diverse; from 1 to K.
        largest_share: of the samples, those in the largest cluster.
    """

    samples: int
    entropy: float
    effective: float
    largest_share: float


def diversity(sizes_K: NDArray[np.integer[Any]]) -> Diversity:
    """The diversity of a set of which `sizes_K` samples lie in each cluster; of an empty set all zeros."""
    total = int(sizes_K.sum())
    if not total:
        return Diversity(0, 0.0, 0.0, 0.0)
    effective = effective_number(sizes_K)
    return Diversity(total, math.log(effective), effective, float(sizes_K.max() / total))


def has_collapsed(before: Diversity, after: Diversity, fraction: float) -> bool:
    """Whether the effective number of clusters fell below a fraction of what it was."""
    return after.effective < fraction * before.effective
