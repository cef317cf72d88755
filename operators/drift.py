"""How far new rows are from those that a selection was fitted on, and how far chance alone takes them.

Each measure comes with the value that it stays below in 99 of 100 cases where nothing has changed, given how few rows
there are: of 50 new rows in 100 clusters the shares differ by much, and that says nothing.

The distances are the Kolmogorov-Smirnov statistic, by the bins of one histogram (so it is at most the statistic of the
values, and falls short by no more than the share of the fullest bin), and total variation, half the sum of the absolute
differences of two distributions. Both are in [0, 1].

Legend: B bins, K clusters; n new rows, m rows that were fitted on.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TAIL = 0.01
"""The share of the fitted rows that lie beyond what `tail_bins` finds, at most."""

_ALPHA = 0.01
_Z = 2.3263478740408408
"""The standard normal distribution exceeds it with probability `_ALPHA`."""


class Measured(NamedTuple):
    """A measure and the value that chance alone exceeds in one case of a hundred."""

    value: float
    chance: float

    def exceeds(self, threshold: float | None) -> bool:
        """Whether it is above a threshold and above what chance explains; never where there is no threshold."""
        return threshold is not None and self.value > threshold and self.value > self.chance


def rate_shift(hits: int, rows: int, fit_hits: int, fit_rows: int) -> Measured:
    """The new share less the fitted one, in [-1, 1]; chance by the normal approximation of the pooled share.

    Args:
        hits: new rows that count.
        rows: n > 0.
        fit_hits: fitted rows that count.
        fit_rows: m > 0.
    """
    assert 0 <= hits <= rows, (hits, rows)
    assert 0 <= fit_hits <= fit_rows, (fit_hits, fit_rows)
    value = (hits * fit_rows - fit_hits * rows) / (rows * fit_rows)
    pooled = (hits + fit_hits) / (rows + fit_rows)
    return Measured(value, _Z * math.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / fit_rows)))


def tail_share(beyond: int, rows: int) -> Measured:
    """The share of n > 0 new rows that lie beyond what at most `TAIL` of the fitted rows lie beyond."""
    assert 0 <= beyond <= rows, (beyond, rows)
    return Measured(beyond / rows, TAIL + _Z * math.sqrt(TAIL * (1 - TAIL) / rows))


def tail_bins(counts_B: NDArray[np.int64]) -> int:
    """How many whole bins from the lowest on hold, together, at most `TAIL` of the values."""
    cumulative_B = np.cumsum(counts_B)
    return int(np.searchsorted(cumulative_B, math.floor(TAIL * int(counts_B.sum())), side="right"))


def ks_distance(counts_B: NDArray[np.int64], fit_counts_B: NDArray[np.int64]) -> Measured:
    """The largest difference of two cumulative distributions (Kolmogorov-Smirnov), counted in the same bins.

    Chance: 2 exp(-2 t^2 nm / (n + m)) bounds the probability of t or more (Wei and Dudley 2012, "Two-sample
    Dvoretzky-Kiefer-Wolfowitz inequalities"; proven for n = m >= 458, and a close estimate below that).

    Args:
        counts_B: int64, of n > 0 new values.
        fit_counts_B: int64, of m > 0 fitted ones.
    """
    rows, fit_rows = int(counts_B.sum()), int(fit_counts_B.sum())
    assert min(rows, fit_rows) > 0, (rows, fit_rows)
    # In whole numbers, of any size: the value does not depend on how numpy would round.
    pairs = zip(np.cumsum(counts_B).tolist(), np.cumsum(fit_counts_B).tolist(), strict=True)
    most = max(abs(ours * fit_rows - theirs * rows) for ours, theirs in pairs)
    chance = math.sqrt(math.log(2 / _ALPHA) / 2 * (1 / rows + 1 / fit_rows))
    return Measured(most / (rows * fit_rows), min(1.0, chance))


def total_variation(counts_K: NDArray[np.int64], fit_counts_K: NDArray[np.int64]) -> Measured:
    """Half the summed absolute differences of two distributions over the same clusters.

    Chance: its expectation is at most half the summed standard deviations of the K differences (Jensen), estimated from
    the pooled shares; one row more or less changes it by 1/n or 1/m, so it exceeds that by t with probability at most
    exp(-2 t^2 nm / (n + m)) (McDiarmid 1989, "On the method of bounded differences").

    Args:
        counts_K: int64, of n > 0 new rows.
        fit_counts_K: int64, of m > 0 fitted ones.
    """
    rows, fit_rows = int(counts_K.sum()), int(fit_counts_K.sum())
    assert min(rows, fit_rows) > 0, (rows, fit_rows)
    pairs = list(zip(counts_K.tolist(), fit_counts_K.tolist(), strict=True))
    value = sum(abs(ours * fit_rows - theirs * rows) for ours, theirs in pairs) / (2 * rows * fit_rows)
    spread = 1 / rows + 1 / fit_rows
    pooled = ((ours + theirs) / (rows + fit_rows) for ours, theirs in pairs)
    expected = math.fsum(math.sqrt(share * (1 - share) * spread) for share in pooled) / 2
    return Measured(value, min(1.0, expected + math.sqrt(math.log(1 / _ALPHA) / 2 * spread)))
