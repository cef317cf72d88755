"""How evenly things are spread, in a few numbers that people choose by.

Legend: N values, K clusters.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class FiveNumbers(NamedTuple):
    """Smallest, quartiles and largest of some values; each of them is one of the values."""

    min: float
    q1: float
    median: float
    q3: float
    max: float


def five_numbers(values_N: NDArray[np.integer] | NDArray[np.floating]) -> FiveNumbers:
    """The five-number summary (Tukey 1977), by the inverse of the empirical distribution.

    Nothing is interpolated: a quarter of the values, at least, are no larger than q1, and so on. Of an even number of
    values the median is the lower of the two in the middle.

    Args:
        values_N: finite, N >= 1.
    """
    assert values_N.size, "no values have no quartiles"
    return FiveNumbers(*np.quantile(values_N, [0.0, 0.25, 0.5, 0.75, 1.0], method="inverted_cdf").tolist())


def effective_number(weights_K: NDArray[np.integer] | NDArray[np.floating]) -> float:
    """How many clusters of equal weight would be as diverse: exp of the entropy of the shares.

    Args:
        weights_K: at least 0.

    Returns:
        from 1, where one cluster has all the weight, to the number of clusters with any, where they share it equally;
        0 where there is no weight.

    Notes:
        The Hill number of order 1 (Hill 1973, "Diversity and evenness").
    """
    weights = weights_K[weights_K > 0].tolist()
    total = math.fsum(weights)
    return math.exp(-math.fsum(weight / total * math.log(weight / total) for weight in weights)) if weights else 0.0
