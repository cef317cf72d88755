"""Choosing rows to show, and adding up what was seen of different shards."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.scan import Choice, Frame, Observation

NAMES = ["a", "b", "c"]
ROWS = st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 5), st.integers(0, 50)), max_size=40)


def frame(rows, shard=0):
    return Frame(shard, np.array([hash_ for _, _, hash_ in rows], dtype=np.uint64), {})


def choose(rows, count, shard=0, keyed=True):
    group_N = np.array([group for group, _, _ in rows], dtype=np.int64)
    key_N = np.array([key for _, key, _ in rows], dtype=np.float64) if keyed else None
    return frame(rows, shard).choose(NAMES, group_N, count, key_N)


@given(ROWS, st.integers(1, 4), st.booleans())
def test_the_lowest_of_each_group(rows, count, keyed):
    expected = {}
    for group, name in enumerate(NAMES):
        members = [
            Choice(float(key) if keyed else 0.0, hash_, 0, row)
            for row, (owner, key, hash_) in enumerate(rows)
            if owner == group
        ]
        if members:
            expected[name] = sorted(members)[:count]
    assert choose(rows, count, keyed=keyed) == expected


@given(st.lists(ROWS, max_size=4), st.integers(1, 3), st.randoms())
def test_the_order_of_shards_does_not_matter(shards, count, random):
    def total(parts):
        seen = Observation()
        for part in parts:
            seen.absorb(part, count)
        return seen.choices

    parts = [Observation(choices=choose(rows, count, shard)) for shard, rows in enumerate(shards)]
    together = total(parts)
    random.shuffle(parts)
    assert total(parts) == together
    assert all(len(rows) <= count and rows == sorted(rows) for rows in together.values())
