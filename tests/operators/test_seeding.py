"""Legend: N rows, M rows drawn from, C candidates, K clusters, D dimensions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from operators.hashing import generator
from operators.screen import measure_rows
from operators.seeding import Oversampling, round_hash, spread_out


def unit_rows16(num_rows: int, dims: int, seed: int = 0) -> NDArray[np.float16]:
    x_ND = np.random.default_rng(seed).standard_normal((num_rows, dims))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)


def spread_out_naively(x_MD: NDArray[np.float16], k: int, seed: int, weight_M: NDArray[np.int64]) -> list[int]:
    """Greedy k-means++ in whole numbers, one distance at a time."""
    random = generator(seed, "kmeans++")
    whole_MD = np.rint(x_MD.astype(np.float64) * 2**11).astype(np.int64).tolist()

    def distance(i: int, j: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(whole_MD[i], whole_MD[j], strict=True))

    def draws(weights: list[int], count: int) -> list[int]:
        return [
            next(i for i in range(len(weights)) if sum(weights[: i + 1]) > r)
            for r in random.integers(sum(weights), size=count).tolist()
        ]

    weights = weight_M.tolist()
    chosen = draws(weights, 1)
    nearest = [distance(chosen[0], i) for i in range(len(x_MD))]
    while len(chosen) < k:
        if not any(w * d for w, d in zip(weights, nearest, strict=True)):
            return chosen + [i for i in range(len(x_MD)) if i not in chosen][: k - len(chosen)]
        trials = draws([w * d for w, d in zip(weights, nearest, strict=True)], 2 + int(np.log(k)))
        after = [[min(n, distance(trial, i)) for i, n in enumerate(nearest)] for trial in trials]
        left = [sum(w * d for w, d in zip(weights, row, strict=True)) for row in after]
        best = left.index(min(left))
        chosen.append(trials[best])
        nearest = after[best]
    return chosen


@pytest.mark.parametrize(("rows", "dims", "k"), [(1, 3, 1), (5, 4, 5), (30, 7, 9), (60, 33, 20)])
@pytest.mark.parametrize("weighted", [False, True])
def test_draws_are_those_of_whole_numbers(rows: int, dims: int, k: int, weighted: bool) -> None:
    x_MD = unit_rows16(rows, dims)
    weight_M = np.random.default_rng(1).integers(1, 2**20, rows) if weighted else np.ones(rows, dtype=np.int64)
    chosen_K = spread_out(x_MD, k, 3, weight_M if weighted else None)
    assert chosen_K.tolist() == spread_out_naively(x_MD, k, 3, weight_M)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_any_rows_give_k_different_positions(seed: int, rows: int, dims: int, kinds: int) -> None:
    generator = np.random.default_rng(seed)
    x_MD = unit_rows16(kinds, dims, seed)[generator.integers(0, kinds, rows)]
    k = int(generator.integers(1, rows + 1))
    chosen_K = spread_out(x_MD, k, seed)
    assert len(set(chosen_K.tolist())) == k
    different = len(np.unique(np.rint(x_MD.astype(np.float64) * 2**11), axis=0))
    assert len(np.unique(np.rint(x_MD[chosen_K].astype(np.float64) * 2**11), axis=0)) == min(k, different)


def test_identical_rows_are_taken_in_order() -> None:
    x_MD = np.tile(unit_rows16(1, 8), (6, 1))
    first, *others = spread_out(x_MD, 4, 0).tolist()
    assert others == [i for i in range(6) if i != first][:3]


def test_rows_that_count_nothing_are_taken_last() -> None:
    weight_M = np.array([0, 1, 1, 0, 1])
    chosen = spread_out(unit_rows16(5, 6), 4, 0, weight_M).tolist()
    assert sorted(chosen[:3]) == [1, 2, 4]
    assert chosen[3] == 0


def test_every_group_gets_a_centroid() -> None:
    directions_GD = np.eye(12, 32)
    x_MD = directions_GD[np.arange(600) % 12] + 0.02 * np.random.default_rng(0).standard_normal((600, 32))
    x_MD = (x_MD / np.linalg.norm(x_MD, axis=1, keepdims=True)).astype(np.float16)
    assert sorted((spread_out(x_MD, 12, 0) % 12).tolist()) == list(range(12))


def exact_weights(x_ND: NDArray[np.float16], candidates_CD: NDArray[np.float16]) -> NDArray[np.int64]:
    difference_NCD = x_ND[:, None].astype(np.float64) - candidates_CD.astype(np.float64)
    return np.ldexp((difference_NCD**2).sum(axis=2).min(axis=1) / 2, 30).astype(np.int64)


@pytest.mark.parametrize("threads", [1, 3])
def test_weights_are_the_squared_distances(threads: int) -> None:
    x_ND = unit_rows16(300, 20)
    closest = Oversampling(measure_rows(x_ND), threads=threads)
    for last in (1, 5, 5, 40):
        closest.add(x_ND[:last])
        np.testing.assert_array_equal(closest.weights(), exact_weights(x_ND, x_ND[:last]))
        assert not closest.weights()[:last].any()
    assert closest.rounds == 4
    assert closest.counts().sum() == 300
    assert len(closest.counts()) == 1 + 5 + 5 + 40
    assert not closest.counts()[1:2].any()  # the second round's first candidate is that of the first


def test_draws_have_the_chance_of_their_weight() -> None:
    x_ND = unit_rows16(4000, 8)
    closest = Oversampling(measure_rows(x_ND))
    closest.add(x_ND[:3])
    weight_N = closest.weights()
    uid_N = np.arange(4000, dtype=np.uint64)
    drawn = [closest.draw(int(weight_N.sum()), 200, round_hash(uid_N, uid_N, 0, number)) for number in range(20)]
    assert abs(np.mean([len(drawn_M) for drawn_M in drawn]) - 200) < 4 * np.sqrt(200 / 20)
    often_N = np.bincount(np.concatenate(drawn), minlength=4000)
    far_N = weight_N > np.median(weight_N)
    expected = weight_N[far_N].sum() / weight_N.sum()
    assert often_N[far_N].sum() / often_N.sum() == pytest.approx(expected, abs=0.03)
    assert not often_N[:3].any()
    closest.add(x_ND)
    assert closest.weights().sum() == 0
    assert len(closest.draw(0, 200, round_hash(uid_N, uid_N, 0, 0))) == 0


def test_no_rows_and_no_candidates() -> None:
    closest = Oversampling(measure_rows(np.zeros((0, 4), dtype=np.float16)))
    closest.add(unit_rows16(3, 4))
    closest.add(np.zeros((0, 4), dtype=np.float16))
    assert closest.rounds == 2
    assert closest.weights().tolist() == []
    assert closest.counts().tolist() == [0, 0, 0]
