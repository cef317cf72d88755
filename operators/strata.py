"""Equal ranges of a value inside each group, from which stratified samples are drawn.

Legend: N samples.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def stratum(value_N: Floats, low_N: Floats, high_N: Floats, num_strata: int) -> NDArray[np.int64]:
    """Which of the equal ranges between its group's lowest and highest value each value lies in.

    Element-wise float64 arithmetic alone, so the same on every machine.

    Args:
        value_N: float64, finite, between low and high.
        low_N: float64, the lowest value of each value's group.
        high_N: float64, the highest.
        num_strata: ranges, at least 1.

    Returns:
        stratum_N: int64 from 0 (the lowest values) to num_strata - 1; 0 where all values of the group are equal.
    """
    width_N = high_N - low_N
    share_N = (value_N - low_N) / np.where(width_N > 0, width_N, 1.0)
    return np.minimum((share_N * num_strata).astype(np.int64), num_strata - 1)
