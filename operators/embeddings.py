"""Embeddings as they are stored, and the exact cosine of stored rows.

Legend: N rows, D dimensions.

A stored row is a unit vector rounded to float16, hence made of multiples of 2^-24 no larger than 1. Every product of
two stored numbers is then a multiple of 2^-48, and so is every partial sum of a dot product, in any order. By
Cauchy-Schwarz the magnitudes of the products add up to at most |a| |b|, which float16 rounding keeps below 2. A
multiple of 2^-48 below 2 has at most 49 bits and float64 holds 53, so nothing is ever rounded: the cosine of two stored
rows is the same number on every machine, for every thread count and every library. All decisions start from it.
"""

import numpy as np
from numpy.typing import NDArray


def to_unit_float16(x_ND: NDArray[np.floating]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Scales rows to unit length in float64, then rounds once to float16.

    Args:
        x_ND: float32 or float64, as an encoder returned it.

    Returns:
        unit_ND: float16; a row without a direction (zero, or with a NaN or an infinity) is all zeros.
        valid_N: bool, False for those rows.
    """
    x_ND = x_ND.astype(np.float64)
    valid_N = np.isfinite(x_ND).all(axis=1) & x_ND.any(axis=1)
    x_ND[~valid_N] = 1.0
    x_ND /= np.abs(x_ND).max(axis=1, keepdims=True, initial=0.0)  # squares can then neither overflow nor all vanish
    x_ND /= np.sqrt(np.square(x_ND).sum(axis=1, keepdims=True))
    x_ND[~valid_N] = 0.0
    return x_ND.astype(np.float16), valid_N


def to_stored(x_ND: NDArray[np.floating]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """The same for embeddings that come from a file: float16 rows that are unit rows already stay what they are.

    What `to_unit_float16` gives is at most 2^-11 + sqrt(D) 2^-25 longer or shorter than 1. Scaling such a row again
    could move it by a last bit, and what was written would not be what is read. The squares of a row of about unit
    length add up exactly (see above), so which rows stay does not depend on the order of the sum.

    Args:
        x_ND: float16, float32 or float64, as it lies in the file.

    Returns:
        as `to_unit_float16`.
    """
    if x_ND.dtype != np.float16:
        return to_unit_float16(x_ND)
    length_N = np.sqrt(np.square(x_ND.astype(np.float64)).sum(axis=1))
    again_N = ~(np.abs(length_N - 1.0) <= 2.0**-11 + np.sqrt(x_ND.shape[1]) * 2.0**-25)
    valid_N = ~again_N
    if not again_N.any():
        return x_ND, valid_N
    unit_ND = x_ND.copy()
    unit_ND[again_N], valid_N[again_N] = to_unit_float16(x_ND[again_N])
    return unit_ND, valid_N


def cosine_pairs(a_ND: NDArray[np.float16], b_ND: NDArray[np.float16]) -> NDArray[np.float64]:
    """The exact dot product of each stored row with its partner, clipped to [-1, 1].

    "Exact" is meant literally; the module docstring gives the argument. Clipping is needed because rounding to float16
    leaves row lengths within about 5e-4 of 1.

    Args:
        a_ND: stored rows, float16.
        b_ND: stored rows, float16, same shape.

    Returns:
        cosine_N: float64 in [-1, 1].
    """
    assert a_ND.dtype == b_ND.dtype == np.float16, (a_ND.dtype, b_ND.dtype)
    assert a_ND.shape == b_ND.shape, (a_ND.shape, b_ND.shape)
    dot_N: NDArray[np.float64] = np.einsum("nd,nd->n", a_ND.astype(np.float64), b_ND.astype(np.float64))
    return dot_N.clip(-1.0, 1.0)
