"""Quotas from the top down. Legend: K leaves, P parents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import ConfigError
from operators.hierarchical_quotas import even_quotas, hierarchical_quotas, level_sizes


def pour(sizes: list[int], target: int) -> list[int]:
    """One sample at a time to the emptiest vessel that has room, the first among equals."""
    quota = [0] * len(sizes)
    for _ in range(target):
        room = [k for k in range(len(sizes)) if quota[k] < sizes[k]]
        quota[min(room, key=lambda k: quota[k])] += 1
    return quota


@st.composite
def trees(draw):
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    parents, width = [], len(sizes)
    for _ in range(draw(st.integers(0, 2))):
        above = draw(st.integers(1, width))
        parents.append(np.array(draw(st.lists(st.integers(0, above - 1), min_size=width, max_size=width)), np.int32))
        width = int(parents[-1].max()) + 1
    return parents, np.array(sizes), draw(st.integers(0, sum(sizes)))


def test_by_hand():
    # Two concepts with 100 and 4 samples, target 20: the small one gives its 4, the large one 16, of its leaves
    # of 90, 3 and 7: 3 stay whole, the other 13 divide into 7 and 6.
    quota = hierarchical_quotas([np.array([0, 1, 0, 0])], np.array([90, 4, 3, 7]), 20)
    assert quota.tolist() == [7, 4, 3, 6]
    # Flat, they would be 7, 4, 3 and 6 as well; with three levels a lone leaf counts as much as its aunt.
    parents = [np.array([0, 0, 1, 2]), np.array([0, 1, 1])]
    assert hierarchical_quotas(parents, np.array([50, 50, 50, 50]), 20).tolist() == [5, 5, 5, 5]
    parents = [np.array([0, 0, 0, 1]), np.array([0, 1])]
    assert hierarchical_quotas(parents, np.array([50, 50, 50, 50]), 20).tolist() == [4, 3, 3, 10]


def test_without_levels_it_is_an_even_division():
    assert hierarchical_quotas([], np.array([5, 0, 2, 9]), 11).tolist() == [5, 0, 2, 4]
    assert even_quotas(np.array([3, 3, 3]), 4).tolist() == [2, 1, 1]


@given(trees())
def test_equals_pouring_level_by_level(tree):
    parents, sizes_K, target = tree
    sizes = level_sizes(parents, sizes_K)
    shares = pour(sizes[-1].tolist(), target)
    for parent_K, below in zip(parents[::-1], sizes[-2::-1], strict=True):
        quota = np.zeros(len(below), int)
        for parent, share in enumerate(shares):
            children = np.flatnonzero(parent_K == parent)
            quota[children] = pour(below[children].tolist(), share)
        shares = quota.tolist()
    assert hierarchical_quotas(parents, sizes_K, target).tolist() == shares


@given(trees())
def test_sums_bounds_and_evenness_at_each_level(tree):
    parents, sizes_K, target = tree
    quota_K = hierarchical_quotas(parents, sizes_K, target)
    sizes, quotas = level_sizes(parents, sizes_K), level_sizes(parents, quota_K)
    assert quota_K.sum() == target
    for level, (size, quota) in enumerate(zip(sizes, quotas, strict=True)):
        assert (quota >= 0).all()
        assert (quota <= size).all()
        family = parents[level] if level < len(parents) else np.zeros(len(size), int)
        for parent in np.unique(family):
            mine = family == parent
            unsated = quota[mine][quota[mine] < size[mine]]
            # Whoever could take more has at most one less than the one with most.
            assert not len(unsated) or quota[mine].max() - unsated.min() <= 1


def test_a_target_beyond_the_samples():
    with pytest.raises(ConfigError, match="must be between 0 and the 3 that are there"):
        hierarchical_quotas([np.array([0, 0])], np.array([1, 2]), 4)


def test_many_leaves():
    generator = np.random.default_rng(0)
    sizes_K = generator.integers(0, 5000, 10_000)
    parents = [generator.integers(0, 1000, 10_000), generator.integers(0, 100, 1000)]
    quota_K = hierarchical_quotas(parents, sizes_K, 1_000_000)
    assert quota_K.sum() == 1_000_000
    top = level_sizes(parents, quota_K)[-1]
    assert top.max() - top.min() <= 1
