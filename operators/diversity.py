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

_DRAWS = 20
"""Enough that their mean is steady where samples are few, which is where they differ."""
_MOST_EXACT = 10**9


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


def thinned_diversity(sizes_K: NDArray[np.integer[Any]], samples: int, rng: np.random.Generator) -> Diversity:
    """What the diversity of so many samples of a set would be, drawn at random without replacement.

    Few samples show fewer clusters than many do, whatever they are: entropy is underestimated by about (K - 1) / 2n
    (Miller 1955, "Note on the bias of information estimates"). So this is what a smaller set is to be held against.

    Args:
        sizes_K: the set.
        samples: in [0, N].
        rng: of the draws, over some of which each number is the mean.
    """
    total = int(sizes_K.sum())
    assert 0 <= samples <= total, (samples, total)
    if total < _MOST_EXACT:
        drawn_RK = rng.multivariate_hypergeometric(sizes_K.astype(np.int64), samples, size=_DRAWS)
    else:  # numpy draws without replacement from fewer only; of so many, it hardly matters
        drawn_RK = rng.multinomial(samples, sizes_K / total, size=_DRAWS)
    _, entropy, effective, largest = np.mean([diversity(drawn_K) for drawn_K in drawn_RK], axis=0).tolist()
    return Diversity(samples, entropy, effective, largest)


def has_collapsed(at_random: Diversity, after: Diversity, fraction: float) -> bool:
    """Whether the effective number of clusters is below a fraction of that of as many samples at random."""
    return after.effective < fraction * at_random.effective
