"""How many samples each cluster keeps, in exact integers: by a quadratic programme, or filled up like water.

`solve_quotas`: minimise sum_j (x_j - P_j n)^2 subject to sum_j x_j = n and lower_j <= x_j <= upper_j (arXiv
2401.04578, density-based pruning). The solution is x_j = clip(P_j n + level, lower_j, upper_j) with one level for all
clusters. The sum is a rising, piecewise linear function of the level whose corners are known: sorting them finds the
level in O(K log K).

Shares are counted in units of 2^-20 of a sample. From there on everything is int64, so sums are exact, equal clusters
are treated alike, and the answer is the same on every machine.

`water_fill` divides each cluster's quota over its bins as evenly as their sizes allow.

Legend: K clusters, B bins of a cluster. "units" are 2^-20 of a sample.
"""

from bisect import bisect_left
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNIT_BITS = 20
MAX_CLUSTERS = 1 << UNIT_BITS
MAX_ROWS = 1 << 40


def solve_quotas(
    probabilities_K: Floats, sizes_K: Ints, target: int, floor: int = 1, kept_K: Ints | None = None
) -> Ints:
    """The integer quotas nearest to `probabilities_K * target` in least squares, summing to `target` exactly.

    The bounds are min(floor, size) <= quota <= size, so that no cluster dies out and an empty one keeps 0. When the
    target is smaller than the number of clusters that have members, not each of them can keep one sample; the lower
    bound is then 0 everywhere, and the clusters with the smallest probabilities are the ones that keep nothing.

    The fractions of the continuous solution go to the largest remainders, ties to the lowest cluster id. This is the
    optimum of the integer programme too: raising a cluster with remainder r costs 1 - 2 r, raising one that sits on its
    lower bound costs at least 1.

    Args:
        probabilities_K: float64, not negative, summing to 1: each cluster's share (`operators.density.softmax`).
        sizes_K: int64, members of each cluster, 0 or more.
        target: samples to keep, from 0 to the sum of the sizes.
        floor: the fewest samples a cluster keeps where it has that many, at least 1 (`balance_floor`).
        kept_K: int64, members that are kept already, at most the size: no quota is lower. See `lower_bounds`.

    Returns:
        quotas_K: int64.

    Raises:
        ConfigError: the target exceeds the samples there are, or the lower bounds exceed the target.

    Notes:
        Abbas et al. 2024, arXiv 2401.04578, density-based pruning. Deviations: a general solver with rounding, as in
        the reference, misses the target (`benchmarks/quotas.py`); a target below the number of clusters has an answer.
    """
    assert probabilities_K.shape == sizes_K.shape, "one probability for each cluster"
    assert sizes_K.size < MAX_CLUSTERS, "the remainders that the units hide must sum to less than one sample"
    assert sizes_K.sum() < MAX_ROWS, "units must fit int64"
    lower_K = lower_bounds(sizes_K, target, floor, kept_K)
    _check_probabilities(probabilities_K)

    wanted_K = np.rint(probabilities_K * float(target << UNIT_BITS)).astype(np.int64)
    units_K = project(wanted_K, lower_K << UNIT_BITS, sizes_K << UNIT_BITS, target << UNIT_BITS)
    quotas_K, remainders_K = units_K >> UNIT_BITS, units_K & ((1 << UNIT_BITS) - 1)
    missing = target - int(quotas_K.sum())
    assert 0 <= missing <= np.count_nonzero(remainders_K)
    if missing:
        claims_K = remainders_K * MAX_CLUSTERS - np.arange(sizes_K.size)  # no two are equal
        quotas_K[np.argpartition(-claims_K, missing - 1)[:missing]] += 1
    return quotas_K


def project(wanted_K: Ints, lower_K: Ints, upper_K: Ints, total: int) -> Ints:
    """The nearest point to `wanted_K` between the bounds that sums to `total`, rounded down to whole units.

    All in units, int64. Fewer than K units are lost to rounding down, and only by coordinates strictly between their
    bounds, which all lose the same fraction of a unit.

    Args:
        wanted_K: the point to project.
        lower_K: lower bounds.
        upper_K: upper bounds, at least `lower_K`.
        total: the sum to reach, between the sums of the bounds.
    """
    # The lowest bit tells a rise of the slope (a lower bound is left) from a fall: sorting keys is faster than argsort.
    keys_2K = np.sort(np.concatenate([(lower_K - wanted_K) * 2, (upper_K - wanted_K) * 2 + 1]))
    corners_2K, slopes_2K = keys_2K >> 1, np.cumsum(1 - 2 * (keys_2K & 1))
    sums_2K = lower_K.sum() + np.concatenate([[0], np.cumsum(slopes_2K[:-1] * np.diff(corners_2K))])

    corner = int(np.searchsorted(sums_2K, total))
    if corner == 0:
        return lower_K.copy()
    level = corners_2K[corner - 1] + (total - sums_2K[corner - 1]) // slopes_2K[corner - 1]
    shifted_K: Ints = np.clip(wanted_K + level, lower_K, upper_K)
    return shifted_K


def balance_floor(target: int, num_clusters: int, class_balance: float) -> int:
    """The fewest samples a cluster keeps: floor(target / num_clusters * class_balance), at least 1.

    Computed from the decimal text of `class_balance`, so 0.1 means one tenth.

    Args:
        target: samples to keep.
        num_clusters: clusters, empty ones included, at least 1.
        class_balance: in [0, 1]; 0 lets the probabilities decide alone, 1 gives each cluster the same quota.
    """
    if not 0 <= class_balance <= 1:
        raise ConfigError(f"class_balance must be in [0, 1], got {class_balance}")
    return max(1, int(Fraction(repr(float(class_balance))) * target / num_clusters))


def lower_bounds(sizes_K: Ints, target: int, floor: int = 1, kept_K: Ints | None = None) -> Ints:
    """The fewest samples each cluster keeps: min(floor, size), or 0 where floor is 1 and not each can keep one.

    With members that are kept already it is these at least. What they leave of the target may be too little for the
    floor: it is then lowered, as far as is needed for all clusters alike.

    Args:
        sizes_K: int64, members of each cluster.
        target: samples to keep.
        floor: at least 1.
        kept_K: int64, members that are kept already, at most the size.

    Raises:
        ConfigError: there are fewer samples than the target, or the floors alone make more, or what is kept already
            does; with the numbers of the bound that is broken and what would be feasible.
    """
    num_rows, num_filled = int(sizes_K.sum()), int(np.count_nonzero(sizes_K))
    if not 0 <= target <= num_rows:
        raise ConfigError(
            f"the number of samples to keep must be between 0 and the {num_rows} that are there (no quota may exceed "
            f"the size of its cluster; {_describe(sizes_K)}), got {target}"
        )
    if floor < 1:
        raise ConfigError(f"the floor of the quotas must be at least 1, got {floor}")
    if kept_K is not None:
        return _bounds_above(kept_K, sizes_K, target, floor)
    if floor == 1 and target < num_filled:
        return np.zeros_like(sizes_K)
    lower_K = np.minimum(sizes_K, floor)
    if lower_K.sum() > target:
        raise ConfigError(
            f"the floor of the quotas must be at most {_highest_floor(sizes_K, target)} to keep {target} samples, got "
            f"{floor}: at least {floor} from each cluster (all members where it has fewer) makes {lower_K.sum()} "
            f"({_describe(sizes_K)})"
        )
    return lower_K


def water_fill(sizes_KB: Ints, totals_K: Ints) -> Ints:
    """Divides each row's total over its bins as evenly as their sizes allow, like water poured into the bins.

    A bin keeps min(size, level) with one level for the row; what the level leaves over goes to the first bins that have
    room, one to each.

    Args:
        sizes_KB: int64, members of each bin.
        totals_K: int64, from 0 to the sum of the row's sizes.

    Returns:
        quotas_KB: int64; rows sum to `totals_K`.
    """
    num_bins = sizes_KB.shape[1]
    sorted_KB = np.sort(sizes_KB, axis=1)
    smaller_KB = np.cumsum(sorted_KB, axis=1) - sorted_KB
    # A bin is full when the water stands as high as it: itself, those below it, and as much in each above it.
    full_KB = smaller_KB + sorted_KB * np.arange(num_bins, 0, -1) <= totals_K[:, None]
    num_open_K = num_bins - full_KB.sum(axis=1)
    level_K, spare_K = np.divmod(totals_K - (sorted_KB * full_KB).sum(axis=1), np.maximum(num_open_K, 1))
    level_K = np.where(num_open_K > 0, level_K, sizes_KB.max(axis=1, initial=0))
    open_KB = sizes_KB > level_K[:, None]
    spare_KB = open_KB & (np.cumsum(open_KB, axis=1) <= spare_K[:, None])
    quotas_KB: Ints = np.minimum(sizes_KB, level_K[:, None]) + spare_KB
    return quotas_KB


def _describe(sizes_K: Ints) -> str:
    filled = sizes_K[sizes_K > 0]
    if not filled.size:
        return f"{sizes_K.size} clusters, all empty"
    return f"{filled.size} non-empty clusters of {sizes_K.size}, with {filled.min()} to {filled.max()} members"


def _bounds_above(kept_K: Ints, sizes_K: Ints, target: int, floor: int) -> Ints:
    """What is kept already, or the highest floor up to `floor` that the target has room for, where that is more."""
    assert (kept_K <= sizes_K).all(), "no more is kept of a cluster than it has"
    if kept_K.sum() > target:
        raise ConfigError(
            f"the number of samples to keep must be at least the {kept_K.sum()} kept already, got {target}"
        )

    def bounds(level: int) -> Ints:
        return np.maximum(kept_K, np.minimum(sizes_K, level))

    beyond = bisect_left(range(floor + 1), True, lo=1, key=lambda level: bool(bounds(level).sum() > target))
    return bounds(beyond - 1)


def _highest_floor(sizes_K: Ints, target: int) -> int:
    """The highest floor whose lower bounds sum to at most `target`: the level of the water, below the spare."""
    sorted_K = np.sort(sizes_K)
    return int(water_fill(sorted_K[None], np.array([target]))[0, -1])  # spare goes to earlier bins


def _check_probabilities(probabilities_K: Floats) -> None:
    total = float(probabilities_K.sum())
    if probabilities_K.size and not (probabilities_K.min() >= 0 and abs(total - 1) < 1e-6):
        raise ConfigError(f"the probabilities of the clusters must be at least 0 and sum to 1, got a sum of {total}")
