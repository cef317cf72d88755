"""Histograms that can be counted part by part without knowing the range beforehand, and still come out the same.

Bins are [i 2^e, (i + 1) 2^e) for integers i and one exponent e: the smallest with at most so many bins over the range
of all values. Coarser bins are unions of finer ones, so parts counted with a smaller e merge without a loss, and
neither their order nor their number changes the result.

Legend: N values, S series (such as dropped and kept), B bins.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 64
_TINY = 2.0**-40
"""Smaller magnitudes count as 0: scaled by the bins of large ones they would underflow, and lose their sign."""

_FINEST = 20
"""Bits below the largest magnitude that bins may resolve: one value alone would otherwise have bins of no width."""


@dataclass(frozen=True)
class Histogram:
    """Counts in dyadic bins.

    Attributes:
        exponent: bins are 2^exponent wide.
        first: index i of the first bin.
        counts_SB: int64; no columns when there are no values.
    """

    exponent: int
    first: int
    counts_SB: NDArray[np.int64]

    @property
    def total(self) -> int:
        """All values."""
        return int(self.counts_SB.sum())

    @property
    def edges(self) -> NDArray[np.float64]:
        """The B + 1 edges of the bins, exact."""
        return np.ldexp(
            np.arange(self.first, self.first + self.counts_SB.shape[1] + 1, dtype=np.float64), self.exponent
        )


def histogram(
    values_N: NDArray[np.float64],
    series_N: NDArray[np.integer],
    num_series: int,
    finest: int | None = None,
    *,
    most: int = MAX_BINS,
) -> Histogram:
    """Counts values by series; those that are not finite are left out.

    Args:
        values_N: float64.
        series_N: the series of each value, 0 to num_series - 1.
        num_series: S.
        finest: the smallest exponent, where the values are not worth finer bins.
        most: bins.
    """
    finite_N = np.isfinite(values_N)
    values_N, series_N = values_N[finite_N], series_N[finite_N]
    if not values_N.size:
        return Histogram(0, 0, np.zeros((num_series, 0), np.int64))
    values_N = np.where(np.abs(values_N) < _TINY, 0.0, values_N)
    low, high = float(values_N.min()), float(values_N.max())
    exponent = math.frexp(max(abs(low), abs(high), _TINY))[1] - _FINEST
    exponent = exponent if finest is None else max(exponent, finest)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= most:
        exponent += 1
    bins_N = np.floor(np.ldexp(values_N, -exponent)).astype(np.int64)
    first = int(bins_N.min())
    counts_SB = np.zeros((num_series, int(bins_N.max()) - first + 1), np.int64)
    np.add.at(counts_SB, (series_N, bins_N - first), 1)
    return Histogram(exponent, first, counts_SB)


def count_like(values_N: NDArray[np.float64], like: Histogram) -> Histogram:
    """Counts values in the bins of another histogram, and in one more on each side for all that lie beyond them.

    Args:
        values_N: float64; those that are not finite are left out.
        like: with at least one bin.

    Returns:
        one series of B + 2 bins.
    """
    values_N = values_N[np.isfinite(values_N)]
    ends = like.edges[[0, -1]]
    inside_N = np.floor(np.ldexp(values_N.clip(*ends), -like.exponent)).astype(np.int64) - like.first + 1
    bins_N = np.where(values_N < ends[0], 0, inside_N)
    num_bins = like.counts_SB.shape[1] + 2
    return Histogram(like.exponent, like.first - 1, np.bincount(bins_N, minlength=num_bins)[None, :].astype(np.int64))


def merge(a: Histogram, b: Histogram, *, most: int = MAX_BINS) -> Histogram:
    """The histogram of the values of both, in so many bins at most. Associative and commutative."""
    if not a.counts_SB.shape[1] or not b.counts_SB.shape[1]:
        return b if not a.counts_SB.shape[1] else a
    exponent = max(a.exponent, b.exponent)
    while _num_bins(a, b, exponent) > most:
        exponent += 1
    a, b = _coarsen(a, exponent), _coarsen(b, exponent)
    first = min(a.first, b.first)
    counts_SB = np.zeros((len(a.counts_SB), _num_bins(a, b, exponent)), np.int64)
    for part in (a, b):
        start = part.first - first
        counts_SB[:, start : start + part.counts_SB.shape[1]] += part.counts_SB
    return Histogram(exponent, first, counts_SB)


def _num_bins(a: Histogram, b: Histogram, exponent: int) -> int:
    lasts: list[int] = [(part.first + part.counts_SB.shape[1] - 1) >> (exponent - part.exponent) for part in (a, b)]
    firsts: list[int] = [part.first >> (exponent - part.exponent) for part in (a, b)]
    return max(lasts) - min(firsts) + 1


def _coarsen(part: Histogram, exponent: int) -> Histogram:
    shift = exponent - part.exponent
    bins_B = np.arange(part.first, part.first + part.counts_SB.shape[1]) >> shift
    first = int(bins_B[0])
    counts_SB = np.zeros((len(part.counts_SB), int(bins_B[-1]) - first + 1), np.int64)
    np.add.at(counts_SB.T, bins_B - first, part.counts_SB.T)
    return Histogram(exponent, first, counts_SB)
