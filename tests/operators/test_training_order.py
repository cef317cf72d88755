"""The order of samples: complete, seeded, and the same from any position."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.training.ordering import Order, Visits


def order(rows, weights=None, *, window=5, seed=0):
    weights = weights or [1.0] * len(rows)
    return Order(seed, tuple(f"{i}.tar" for i in range(len(rows))), tuple(rows), tuple(weights), window)


def sequence(of: Order, start: int, count: int) -> list[tuple[int, int, int, int]]:
    found: list[tuple[int, int, int, int]] = []
    for window, seen in of.windows_from(start):
        visits = of.visits(window)
        assert len(visits.row_N) == window.size
        found += zip(*(column.tolist() for column in visits.part(slice(seen, None))), strict=True)
        if len(found) >= count:
            return found[:count]
    raise AssertionError


def test_an_epoch_visits_every_row_once_and_in_another_order_each_time():
    of = order([3, 4, 2])
    first, second = sequence(of, 0, 9), sequence(of, 9, 9)
    rows = {(piece, row) for piece, size in enumerate([3, 4, 2]) for row in range(size)}
    assert {visit[1:3] for visit in first} == {visit[1:3] for visit in second} == rows
    assert {visit[0] for visit in first} == {0}
    assert {visit[0] for visit in second} == {1}
    assert [visit[1:] for visit in first] != [visit[1:] for visit in second]
    assert sequence(order([3, 4, 2], seed=1), 0, 9) != first


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(0, 60),
    st.sampled_from([0.3, 1.0, 1.5, 2.0]),
)
def test_a_position_says_all_that_was_seen(rows, window, start, weight):
    of = order(rows, [weight] * len(rows), window=window)
    assert sequence(of, start, 20) == sequence(of, 0, start + 20)[start:]


def test_a_set_smaller_than_a_window_is_permuted_whole():
    (window,) = order([3, 4, 2], window=100).windows(0)
    assert sorted(window.pieces) == [0, 1, 2]
    pieces = order([50, 50], window=100).visits(order([50, 50], window=100).windows(0)[0]).piece_N
    assert 10 < np.count_nonzero(pieces[:50]) < 40


def test_windows_hold_as_much_as_asked_but_for_the_last():
    windows = order([3, 4, 2, 5, 1], window=6).windows(3)
    assert sorted(itertools.chain(*(window.pieces for window in windows))) == [0, 1, 2, 3, 4]
    assert all(window.size >= 6 for window in windows[:-1])
    assert [window.number for window in windows] == list(range(len(windows)))


def test_weights_are_multiplicities():
    of = order([4, 10], [2.0, 0.5], window=100)
    seen = Visits(*(np.concatenate(columns) for columns in zip(*map(of.visits, of.windows(0)), strict=True)))
    first = sorted(zip(seen.row_N[seen.piece_N == 0].tolist(), seen.repeat_N[seen.piece_N == 0].tolist(), strict=True))
    assert first == [(row, repeat) for row in range(4) for repeat in range(2)]
    half = seen.row_N[seen.piece_N == 1]
    assert len(half) == len(set(half.tolist())) == 5


def test_every_row_is_drawn_as_often_as_its_weight_says():
    of = order([1, 1, 3, 7], [0.25] * 4, window=100, seed=5)
    counts = np.zeros(12)
    epochs = 800
    for epoch in range(epochs):
        for window in of.windows(epoch):
            visits = of.visits(window)
            np.add.at(counts, np.asarray([0, 1, 2, 5])[visits.piece_N] + visits.row_N, 1)
    assert np.abs(counts / epochs - 0.25).max() < 0.06  # four standard deviations of a fair draw
    assert {int(of.counts(epoch).sum()) for epoch in range(20)} == {3}


def test_a_pool_without_samples_has_no_order():
    with pytest.raises(ValueError, match="must have samples"):
        next(order([], []).windows_from(0))
