"""How far samples lie from prototypes: the difficulty that pruning by prototypes goes by.

Sorscher et al. 2022, arXiv 2206.14486, section 5 (cosine distance to the nearest k-means centroid), and the Euclidean
margins that go by a sample's own class against the two nearest others.

Stored rows are multiples of 2^-24 and prototypes of 2^-28, all no longer than about 1, so their float64 dot products
are exact in any order (`operators.exact`). Squared norms are summed in one fixed order, and what follows is
element-wise arithmetic and square roots, which IEEE 754 rounds in one way: the same bits on every machine.

Legend: N samples, B samples of a block, P prototypes, D dimensions.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError
from operators.exact import ordered_sum, round_to_grid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK_BYTES = 1 << 26
"""Of one block of distances."""


class Margin(NamedTuple):
    """Distances of each sample to three prototypes.

    Attributes:
        own_N: float64 Euclidean distance to its own prototype.
        second_N: to the nearest of the others.
        third_N: to the nearest but one of the others.
        other_N: int32, which prototype the nearest of the others is; the lowest id among equals.
    """

    own_N: Floats
    second_N: Floats
    third_N: Floats
    other_N: NDArray[np.int32]

    @property
    def value_N(self) -> Floats:
        """d(own) - d(nearest other) - d(second other): high where others are near and the own prototype is not."""
        return self.own_N - self.second_N - self.third_N


def mean_prototypes(sums_PD: Floats, counts_P: Ints) -> Floats:
    """The mean of each prototype's samples, on the 2^-28 grid; zeros where it has none.

    Args:
        sums_PD: float64, exact sums of stored rows (`operators.kmeans.partial_sums`).
        counts_P: int64, how many rows each sum is of.
    """
    return round_to_grid(sums_PD / np.maximum(counts_P, 1)[:, None])


def cosine_distance(x_ND: NDArray[np.float16], unit_PD: Floats, own_N: NDArray[np.integer]) -> Floats:
    """1 - cos of each sample to its own prototype, float64 in [0, 2].

    Args:
        x_ND: float16 stored rows.
        unit_PD: float64 unit rows on the grid.
        own_N: each sample's prototype.
    """
    distance_N = np.empty(len(x_ND))
    for block in _blocks(len(x_ND), 2 * unit_PD.shape[1]):
        dot_B = np.einsum("bd,bd->b", x_ND[block].astype(np.float64), unit_PD[own_N[block]])
        distance_N[block] = 1.0 - np.clip(dot_B, -1.0, 1.0)
    return distance_N


def margins(x_ND: NDArray[np.float16], prototypes_PD: Floats, own_N: NDArray[np.integer]) -> Margin:
    """Euclidean distances of each sample to its own prototype and to the two nearest others.

    |x - p|^2 is computed as (|x|^2 - 2 <x, p>) + |p|^2, in this order. All N x P distances are computed, in blocks.

    Args:
        x_ND: float16 stored rows.
        prototypes_PD: float64 on the grid, at least 3 rows, none longer than about 1.
        own_N: each sample's prototype.

    Raises:
        ConfigError: there are fewer than three prototypes.
    """
    num_prototypes = len(prototypes_PD)
    if num_prototypes < 3:
        raise ConfigError(f"a margin must compare a prototype with two others, got {num_prototypes} in all")
    norm_P = ordered_sum(prototypes_PD * prototypes_PD)
    nearest_N3, other_N = np.empty((len(x_ND), 3)), np.empty(len(x_ND), np.int32)
    for block in _blocks(len(x_ND), 2 * num_prototypes):
        x_BD = x_ND[block].astype(np.float64)
        squared_BP = np.einsum("bd,bd->b", x_BD, x_BD)[:, None] - 2.0 * (x_BD @ prototypes_PD.T)
        squared_BP += norm_P
        rows_B, column_B = np.arange(len(x_BD)), own_N[block]
        for rank in range(3):
            nearest_N3[block, rank] = squared_BP[rows_B, column_B]
            squared_BP[rows_B, column_B] = np.inf
            column_B = squared_BP.argmin(axis=1)
            if rank == 0:
                other_N[block] = column_B
    distance_N3: Floats = np.sqrt(np.maximum(nearest_N3, 0.0))
    return Margin(distance_N3[:, 0], distance_N3[:, 1], distance_N3[:, 2], other_N)


def num_above_quantile(sizes_G: Ints, quantile: float) -> Ints:
    """How many values of a group lie above its quantile: size - 1 - floor(quantile x (size - 1)), 0 for no values.

    The quantile is the linearly interpolated one, so the values above it are those ranked behind position
    quantile x (size - 1); of equal values as many are counted as make that number. Computed from the decimal text of
    `quantile`, so 0.9 means nine tenths.

    Args:
        sizes_G: int64, values of each group.
        quantile: in [0, 1).
    """
    exact = Fraction(repr(float(quantile)))
    sizes, inverse_G = np.unique(sizes_G, return_inverse=True)
    above = [max(0, size - 1 - int(exact * (size - 1))) if size else 0 for size in sizes.tolist()]
    return np.array(above, np.int64)[inverse_G]


def _blocks(num_rows: int, floats_per_row: int) -> Iterator[slice]:
    height = max(1, BLOCK_BYTES // (8 * floats_per_row))
    return (slice(start, min(start + height, num_rows)) for start in range(0, num_rows, height))
