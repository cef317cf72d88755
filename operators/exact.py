"""Float64 arithmetic that gives the same bits on every machine: a grid to round to, and sums in one order.

Legend: N rows, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

GRID_BITS = 28
"""Centroids are multiples of 2^-28: with rows that are multiples of 2^-24, products fit the 53 bits of a float64."""


def round_to_grid(values: NDArray[np.float64], bits: int = GRID_BITS) -> NDArray[np.float64]:
    """Rounds to the nearest multiple of 2^-bits, ties to even; any shape."""
    rounded: NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(values, bits)), -bits)
    return rounded


def ordered_sum(values_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums each row in one fixed order, by folding the right half onto the left.

    Only element-wise additions take part, which IEEE 754 rounds the same way everywhere; a library's own sum or dot
    product depends on its version and on the processor. For sums that are not exact, such as squared norms.

    Returns:
        sum_N, float64; zeros where D is 0.
    """
    folded_ND = values_ND
    while (width := folded_ND.shape[1]) > 1:
        half = (width + 1) // 2
        left_ND = folded_ND[:, :half].copy()
        left_ND[:, : width - half] += folded_ND[:, half:]
        folded_ND = left_ND
    return folded_ND[:, 0] if folded_ND.shape[1] else np.zeros(len(values_ND))
