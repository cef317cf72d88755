"""Sums of numbers from [-1, 1] by group that are exact, so that neither their order nor how they are split matters.

A similarity is a multiple of 2^-52 (`operators.certified`), so that a float64 sum of many is rounded. Here each is cut
into two integers of 26 bits, the limbs, which are added up by themselves. Other numbers are rounded to 2^-52.

Legend: N rows, G groups.
"""

import numpy as np
from numpy.typing import NDArray

BITS = 52
_LOW_BITS = 26
_MOST_ROWS = 1 << (53 - _LOW_BITS)
"""Of one call: up to here float64, in which numpy counts, holds the sum of either limb."""


def sum_limbs(values_N: NDArray[np.float64], group_N: NDArray[np.integer], groups: int) -> NDArray[np.int64]:
    """Limbs_G2: the sums of the high and the low limbs of each group's values. They add up, for 2^36 rows at least.

    Args:
        values_N: float64 in [-1, 1].
        group_N: of each row, from 0.
        groups: G.
    """
    assert len(values_N) < _MOST_ROWS, len(values_N)
    units_N = np.rint(np.ldexp(values_N, BITS)).astype(np.int64)
    limbs = units_N >> _LOW_BITS, units_N & ((1 << _LOW_BITS) - 1)
    sums = [np.bincount(group_N, weights=limb_N, minlength=groups).astype(np.int64) for limb_N in limbs]
    return np.stack(sums, axis=1)


def join_limbs(limbs_G2: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums_G: the float64 nearest to each sum."""
    sums = [((high << _LOW_BITS) + low) / (1 << BITS) for high, low in limbs_G2.tolist()]  # of integers of any size
    return np.array(sums, np.float64)
