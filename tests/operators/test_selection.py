import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import operators.selection as selection
from operators.errors import ConfigError, InputError
from operators.selection import (
    Cutoffs,
    Keys,
    begin,
    choose_digits,
    count_digits,
    cutoff_value,
    cutoffs,
    is_kept,
    last_kept,
    merge_summaries,
    narrow,
    num_kept,
    order_key,
    summarise,
    tighten,
    unit_values,
    values_of,
)

FLOATS = st.floats(allow_nan=False, allow_infinity=True)
MAX = (1 << 64) - 1


def select(parts, quotas) -> tuple[Cutoffs, int]:
    """The whole search over some workers' parts, in this process: what pipeline/selection.py spreads."""
    quotas = np.array(quotas, np.int64)
    summary = summarise(parts[0], quotas.size)
    for part in parts[1:]:
        summary = merge_summaries(summary, summarise(part, quotas.size))
    search, rounds = begin(summary, quotas), 0
    while not search.done:
        parts_left = [narrow(search, part) for part in parts]
        search = choose_digits(search, sum(count_digits(search, part) for part in parts_left))
        rounds += 1
    rule = cutoffs(search)
    return tighten(rule, np.max([last_kept(rule, part) for part in parts], axis=0)), rounds


def make_keys(groups, values, highs, lows) -> Keys:
    return Keys(np.array(groups, np.int32), *(np.array(w, np.uint64) for w in (values, highs, lows)))


def kept_by_sorting(keys: Keys, quotas) -> np.ndarray:
    order = np.lexsort((keys.low_N, keys.high_N, keys.value_N, keys.group_N))
    kept, taken = np.zeros(order.size, bool), [0] * len(quotas)
    for row in order:
        group = keys.group_N[row]
        kept[row] = taken[group] < quotas[group]
        taken[group] += 1
    return kept


def split(keys: Keys, num_parts: int) -> list[Keys]:
    return [keys.take(np.arange(keys.group_N.size) % num_parts == i) for i in range(num_parts)]


def test_by_hand():
    keys = make_keys([0, 0, 0, 1, 1], [7, 5, 5, 9, 1], [1, 2, 2, 0, 0], [1, 9, 8, 0, 1])
    rule, _ = select([keys], [1, 1])
    assert is_kept(rule, *keys).tolist() == [False, False, True, False, True]  # value 5, then the smaller uid
    assert rule.last_G3[:, 0].tolist() == [5, 1]


@st.composite
def problems(draw):
    num_groups, num_rows = draw(st.integers(1, 5)), draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([1, 3, 1 << 20, MAX]))  # 1: every value the same
    uid_spread = draw(st.sampled_from([1, 2, MAX]))
    keys = Keys(
        rng.integers(0, num_groups, num_rows).astype(np.int32),
        rng.integers(0, spread, num_rows, np.uint64, endpoint=True) if spread > 1 else np.full(num_rows, 42, np.uint64),
        rng.integers(0, uid_spread, num_rows, np.uint64),
        rng.permutation(num_rows).astype(np.uint64) * np.uint64(draw(st.sampled_from([1, MAX // 64]))),
    )
    sizes = np.bincount(keys.group_N, minlength=num_groups)
    quotas = [draw(st.sampled_from([0, int(s), int(s) // 2, min(1, int(s))])) for s in sizes]
    return keys, quotas


@given(problems(), st.sampled_from([1, 3, 7]), st.sampled_from([2, 64, 1 << 16]))
@settings(max_examples=300)
def test_equals_sorting_for_any_split_and_any_width_of_digits(problem, num_parts, max_counters):
    keys, quotas = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "MAX_COUNTERS", max_counters)
        rule, _ = select(split(keys, num_parts), quotas)
    expected = kept_by_sorting(keys, quotas)
    np.testing.assert_array_equal(is_kept(rule, *keys), expected)
    for group, quota in enumerate(quotas):
        assert rule.some_G[group] == (quota > 0)
        if quota:
            assert rule.last_G3[group, 0] == keys.value_N[expected & (keys.group_N == group)].max()


def test_quota_of_nothing_or_all_takes_no_round():
    keys = make_keys([0, 0, 2], [3, 0, MAX], [0, 0, MAX], [0, 0, MAX])
    rule, rounds = select([keys], [2, 0, 1])
    assert rounds == 0
    assert is_kept(rule, *keys).tolist() == [True, True, True]
    rule, rounds = select([keys], [0, 0, 0])
    assert rounds == 0
    assert not is_kept(rule, *keys).any()  # not even the row whose words are all zero


@pytest.mark.parametrize("quota", [1, 2, 3, 4])
def test_the_last_slice_does_not_wrap_around(quota, monkeypatch):
    monkeypatch.setattr(selection, "MAX_COUNTERS", 2)
    keys = make_keys([0] * 5, [7 << 60, 1 << 62, MAX, MAX - 1, 1], [0] * 5, range(5))
    rule, _ = select([keys], [quota])
    np.testing.assert_array_equal(is_kept(rule, *keys), kept_by_sorting(keys, [quota]))


def test_no_rows():
    rule, _ = select([make_keys([], [], [], [])], [0, 0])
    assert np.isnan(cutoff_value(rule, descending=True)).all()


@pytest.mark.parametrize(("num_groups", "most"), [(1, 2), (2000, 4)])
def test_few_rounds(num_groups, most):
    rng = np.random.default_rng(1)
    keys = Keys(
        rng.integers(0, num_groups, 100_000).astype(np.int32),
        order_key(rng.random(100_000), descending=True),
        *rng.integers(0, MAX, (2, 100_000), np.uint64),
    )
    quotas = np.bincount(keys.group_N, minlength=num_groups) // 3
    rule, rounds = select([keys], quotas)
    assert rounds <= most
    np.testing.assert_array_equal(np.bincount(keys.group_N[is_kept(rule, *keys)], minlength=num_groups), quotas)


def test_identical_values_go_to_the_smallest_uids_in_few_rounds():
    high = np.random.default_rng(2).integers(0, MAX, 10_000, np.uint64)
    zeros = np.zeros(10_000, np.uint64)
    rule, rounds = select([Keys(zeros.astype(np.int32), zeros, high, zeros)], [2500])
    assert rounds <= 3
    np.testing.assert_array_equal(
        is_kept(rule, zeros.astype(np.int32), zeros, high, zeros), high <= np.sort(high)[2499]
    )


@pytest.mark.parametrize(("quota", "message"), [(3, "group 1 must be between 0 and its 2 rows, got 3"), (-1, "got -1")])
def test_impossible_quotas(quota, message):
    with pytest.raises(InputError, match=message):
        select([make_keys([0, 1, 1], [0] * 3, [0] * 3, [0, 1, 2])], [1, quota])


def test_repeated_uid_is_a_broken_invariant():
    with pytest.raises(AssertionError, match="twice"):
        select([make_keys([0, 0], [1, 1], [2, 2], [3, 3])], [1])


@given(st.lists(FLOATS, max_size=40), st.booleans())
def test_order_key_sorts_as_the_floats_do(values, descending):
    values = np.array(values, np.float64)
    keys = order_key(values, descending)
    smaller = (values[:, None] > values) if descending else (values[:, None] < values)
    np.testing.assert_array_equal(keys[:, None] < keys, smaller)
    np.testing.assert_array_equal(values_of(keys, descending), values)


def test_hashes_as_draws():
    assert unit_values(np.array([0, 1 << 63, 3 << 62], np.uint64)).tolist() == [0.0, 0.5, 0.75]


def test_order_key_by_hand():
    assert order_key(np.array([0.0, -0.0, 1.0, -1.0]), False).tolist() == [
        0x8000000000000000,
        0x8000000000000000,
        0xBFF0000000000000,
        0x400FFFFFFFFFFFFF,
    ]


def test_order_key_refuses_nan():
    with pytest.raises(InputError, match="must not be NaN, got 1 of 3"):
        order_key(np.array([0.0, np.nan, 1.0]), False)


@pytest.mark.parametrize("descending", [False, True])
def test_cutoff_value_is_the_last_value_kept(descending):
    values = np.array([0.3, 0.1, 0.2, -5.0])
    keys = Keys(
        np.array([0, 0, 0, 1], np.int32), order_key(values, descending), *np.arange(8, dtype=np.uint64).reshape(2, 4)
    )
    rule, _ = select([keys], [2, 0])
    last = cutoff_value(rule, descending)
    assert last[0] == 0.2
    assert np.isnan(last[1])


@pytest.mark.parametrize(
    ("fraction", "rows", "expected"),
    [
        *[(0.5, 5, 2), (0.5, 7, 4), (0.1, 15, 2), (0.1, 25, 2), (0.3, 10, 3), (0.15, 10, 2), (1e-05, 150_000, 2)],
        *[(1, 9, 9), (0.0, 9, 0), (0.3, 0, 0), (0.7, 10**18, 7 * 10**17)],
    ],
)
def test_num_kept(fraction, rows, expected):
    assert num_kept(fraction, rows) == expected


def test_num_kept_refuses():
    with pytest.raises(ConfigError, match=r"keep_fraction must be in \[0, 1\], got 1.5"):
        num_kept(1.5, 10)
