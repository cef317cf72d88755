"""How many samples each cluster of a hierarchy keeps: as even as sizes allow, from the top down.

A target is divided over the top clusters like water over vessels: all get the same, except that those which hold less
give all they have. Each share is divided in the same way over the clusters below, down to the leaves. So a concept
counts once at its level however many samples it has, and a rare one is kept whole.

Vo et al. 2024, arXiv 2405.15613, hierarchical sampling. Deviation: shares are whole numbers that sum to the target.

Legend: K leaf clusters, P clusters of the level above, C clusters with one parent.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from operators.quotas import lower_bounds, water_fill

Ints = NDArray[np.int64]


def hierarchical_quotas(parents: Sequence[NDArray[np.integer]], sizes_K: Ints, target: int) -> Ints:
    """Divides `target` over the top clusters, and each share over the clusters below.

    Args:
        parents: for each level from the leaves up, the parent of each of its clusters; the top level has none. Without
            any, the leaves are the top.
        sizes_K: int64, samples of each leaf.
        target: samples to keep, from 0 to all of them.

    Returns:
        quota_K: int64, at most the sizes, summing to `target`. What cannot be divided evenly goes to the lowest ids.

    Raises:
        ConfigError: the target exceeds the samples there are.
    """
    sizes = level_sizes(parents, sizes_K)
    lower_bounds(sizes[-1], target)
    quota = even_quotas(sizes[-1], target)
    for parent_C, sizes_C in zip(reversed(parents), reversed(sizes[:-1]), strict=True):
        quota = _divide(quota, parent_C, sizes_C)
    return quota


def level_sizes(parents: Sequence[NDArray[np.integer]], sizes_K: Ints) -> list[Ints]:
    """The samples of each cluster, for each level from the leaves up; clusters without children have none."""
    sizes = [sizes_K.astype(np.int64)]
    num_above = [len(parent_P) for parent_P in parents[1:]] + [int(parent_K.max()) + 1 for parent_K in parents[-1:]]
    for parent_K, num_parents in zip(parents, num_above, strict=True):
        sizes_P = np.zeros(num_parents, dtype=np.int64)
        np.add.at(sizes_P, parent_K, sizes[-1])
        sizes.append(sizes_P)
    return sizes


def even_quotas(sizes_K: Ints, target: int) -> Ints:
    """The most even division of `target` that takes no more of each than there is; spare ones go to the lowest ids."""
    quotas_1K = water_fill(sizes_K[None], np.array([target]))
    return quotas_1K.ravel()


def _divide(quota_P: Ints, parent_K: NDArray[np.integer], sizes_K: Ints) -> Ints:
    """Divides each parent's quota over its children."""
    order_K = np.argsort(parent_K, kind="stable")
    edges = np.searchsorted(parent_K[order_K], np.arange(len(quota_P) + 1))
    quota_K = np.zeros_like(sizes_K)
    for quota, first, last in zip(quota_P.tolist(), edges[:-1], edges[1:], strict=True):
        children_C = order_K[first:last]
        quota_K[children_C] = even_quotas(sizes_K[children_C], quota)
    return quota_K
