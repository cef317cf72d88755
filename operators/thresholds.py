"""A threshold fixed on a drawn subset and then applied to each row alone, and what share of all rows it keeps.

Data Filtering Networks fix the score that the best 15 % of a subset reach, and keep every sample of the pool that
reaches it (Fang et al. 2023, arXiv 2309.17425, section 3). The share that is then kept is not 15 % but near it; how
near follows from the sizes alone, whatever the distribution of the values.

Legend: N rows.
"""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Subset(NamedTuple):
    """What is known of the rows that a threshold was fixed on.

    Attributes:
        size: rows drawn, without replacement; those without a value rank last.
        rank: the threshold is the value of the row of this rank, the best row having rank 1.
        reached: rows of the subset that reach the threshold: `rank`, and those that tie with it.
    """

    size: int
    rank: int
    reached: int


def reaches(values_N: NDArray[np.float64], threshold: float, highest: bool) -> NDArray[np.bool_]:
    """Bool_N: whether each value is at least as good as the threshold. Ties are; NaN, for no value, is not."""
    return values_N >= threshold if highest else values_N <= threshold


def kept_share_interval(subset: Subset, confidence: float, rows: int | None = None) -> tuple[float, float]:
    """The interval that holds the share of all rows that reach the threshold, with at least the given confidence.

    The subset is fixed in size, so of k rows that are good enough it holds a hypergeometric number. The ends are the
    smallest and the largest k under which what was drawn is not too unlikely (Clopper and Pearson 1934; half of
    1 - confidence on each side). The lower end asks this of `rank`, since ties can only add to what is kept; the upper
    one of `reached`. No assumption is made about the values, and they may tie.

    Why the upper end holds although the data chose the threshold: it is too low at a threshold t only if unlikely few
    were drawn of the rows that reach t, yet `rank` or more. Take the highest t where that can happen at all. Either
    t is the threshold, and too few were drawn; or the threshold is lower, since not even `rank` of these rows were
    drawn. Both are the one event that too few were drawn at a t that no draw decides.

    Args:
        subset: drawn uniformly.
        confidence: in (0, 1).
        rows: of the pool that the subset was drawn from; None for the endless source that the pool itself came from,
            and so for any later pool of it, where the counts are binomial.

    Returns:
        (low, high), shares in [0, 1].
    """
    from scipy import stats  # takes half a second, which no worker and no check of a config should pay

    size, rank, reached = subset
    assert 1 <= rank <= reached <= size, subset
    tail = (1 - confidence) / 2
    if rows is None:
        high = 1.0 if reached == size else float(stats.beta.ppf(1 - tail, reached + 1, size - reached))
        return float(stats.beta.ppf(tail, rank, size - rank + 1)), high
    assert size <= rows, (size, rows)
    good = range(rows + 1)
    low = bisect_left(good, True, key=lambda k: stats.hypergeom.sf(rank - 1, rows, k, size) > tail)
    beyond = bisect_left(good, True, key=lambda k: stats.hypergeom.cdf(reached, rows, k, size) <= tail)
    return low / rows, (beyond - 1) / rows
