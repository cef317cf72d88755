"""Duplicates against a naive greedy over all compared pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from operators import duplicates, near_pairs
from operators.duplicates import (
    GOES,
    LAST_KEY,
    STAYS,
    Block,
    Groups,
    Heard,
    Rule,
    compare,
    distinct_rows,
    is_over,
    open_block,
    settle,
)
from operators.embeddings import to_unit_float16
from operators.near_pairs import screen, thresholds

EPSILONS = np.array([0.001, 0.01, 0.05])


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_pairs, "TILE", 16)
        patch.setattr(duplicates, "TILE", 16)
        yield


def keys(order: list[int]) -> np.ndarray:
    return np.array([[0, 0, place] for place in order], dtype=np.uint64)


def block_of(x_ND, key_N3, epsilons=1) -> Block:
    return open_block(screen(np.asarray(x_ND, dtype=np.float16)), key_N3, epsilons)


CHAIN = [[1, 0], [0.96, 0.28], [0.8432, 0.5376]]  # each near its neighbour only


@pytest.mark.parametrize(("mode", "goes"), [("cover", [False, True, False]), ("reference", [False, True, True])])
def test_a_chain(mode, goes):
    groups = Groups.singles(3)
    block = settle(block_of(CHAIN, keys([0, 1, 2])), None, Rule(mode, thresholds(np.array([0.05])), 0), groups)
    np.testing.assert_array_equal(block.status_EN[0] == GOES, goes)
    np.testing.assert_array_equal(groups.label_N, [0, 0, 0])
    np.testing.assert_array_equal(block.first_N3[1], [0, 0, 0])
    assert block.similarity_N[1] == float(np.float16(0.96))
    assert (block.first_N3[2] == ([0, 0, 1] if mode == "reference" else LAST_KEY)).all()


def test_several_epsilons_in_one_pass():
    rule = Rule("cover", thresholds(np.array([0.001, 0.05, 0.2])), 1)
    block = settle(block_of(CHAIN, keys([0, 1, 2]), 3), None, rule)
    np.testing.assert_array_equal(duplicates.removed(block), [0, 1, 2])


def test_of_rows_that_are_all_alike_the_first_stays():
    groups = Groups.singles(50)
    block = settle(
        block_of([[0.6, 0.8]] * 50, keys(range(50))), None, Rule("cover", thresholds(EPSILONS[:1]), 0), groups
    )
    assert (block.status_EN[0] == STAYS).tolist() == [True] + [False] * 49
    assert (groups.label_N == 0).all()


def test_one_row_and_none():
    rule = Rule("cover", thresholds(EPSILONS[:1]), 0)
    assert settle(block_of([[1, 0]], keys([0])), None, rule).status_EN.tolist() == [[STAYS]]
    assert settle(block_of(np.zeros((0, 2)), np.zeros((0, 3), np.uint64)), None, rule).status_EN.shape == (1, 0)


def test_a_row_waits_for_an_undecided_neighbour_elsewhere():
    rule = Rule("cover", thresholds(np.array([0.05])), 0)
    left, right = block_of(CHAIN[:1] + CHAIN[2:], keys([0, 2])), block_of(CHAIN[1:2], keys([1]))
    heard_left, heard_right, links = compare(left, right, rule)
    np.testing.assert_array_equal(heard_left.waits_EN, [[False, True]])
    np.testing.assert_array_equal(heard_right.waits_EN, [[True]])
    np.testing.assert_array_equal(links, [[0, 1], [0, 0]])
    left, right = settle(left, heard_left, rule), settle(right, heard_right, rule)
    assert left.waits
    assert right.waits
    heard_left, heard_right, _ = compare(left, right, rule)
    assert heard_right.goes_EN[0, 0]
    assert settle(right, heard_right, rule).status_EN.tolist() == [[GOES]]


def test_a_row_that_goes_hears_of_an_earlier_neighbour_that_is_decided_later():
    """Two blocks: c goes at once because of b beside it, and learns in the last turn that a comes first."""
    rule = Rule("cover", thresholds(np.array([0.05])), 0)
    a, b, c = [0.96, -0.28], [0.96, 0.28], [1, 0]
    left, right = block_of([a], keys([0])), block_of([b, c], keys([1, 2]))
    for turn in range(2):
        heard_left, heard_right, _ = compare(left, right, rule)
        left, right = settle(left, heard_left, rule), settle(right, heard_right, rule)
        assert not left.waits
        assert not right.waits
        assert right.first_N3[1].tolist() == [0, 0, 0 if turn else 1]
        assert is_over([left, right], "cover") == bool(turn)


def oracle(x_ND, threshold_E, mode, compared_NN):
    """Stays, representative and group at each threshold, row by row in order."""
    exact_NN = x_ND.astype(np.float64) @ x_ND.astype(np.float64).T
    for threshold in threshold_E:
        near_NN = (exact_NN > threshold) & compared_NN
        stays_N, first_N = np.zeros(len(x_ND), bool), np.full(len(x_ND), -1)
        for i in range(len(x_ND)):
            earlier = np.flatnonzero(near_NN[i, :i] & (stays_N[:i] if mode == "cover" else True))
            stays_N[i] = not len(earlier)
            first_N[i] = earlier[0] if len(earlier) else -1
        yield stays_N, first_N, connected_components(near_NN)[1]


@pytest.mark.parametrize("mode", ["cover", "reference"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 150),
    blocks=st.integers(1, 6),
    threads=st.sampled_from([1, 3]),
    standing=st.sampled_from([0, 0, 1, 20, 60]),
)
def test_any_cut_into_blocks_agrees_with_the_oracle(mode, seed, rows, blocks, threads, standing):
    rng = np.random.default_rng(seed)
    x_ND = to_unit_float16(rng.standard_normal((rows, int(rng.integers(2, 6)))))[0]
    key_N3 = np.stack([rng.integers(0, 5, rows), rng.integers(0, 9, rows), rng.permutation(rows)], 1).astype(np.uint64)
    order = np.lexsort(key_N3.T[::-1])
    x_ND, key_N3 = x_ND[order], key_N3[order]
    rule = Rule(mode, thresholds(EPSILONS), int(rng.integers(3)), threads)
    block_N, meet = rng.integers(0, blocks, rows), rng.random((blocks, blocks)) < 0.7
    meet |= meet.T | np.eye(blocks, dtype=bool)
    compared_NN = meet[block_N][:, block_N]
    compared_NN[:standing, :standing] = False
    expected = list(oracle(x_ND, rule.threshold_E, mode, compared_NN))

    at = [np.flatnonzero(block_N == block) for block in range(blocks)]
    parts = [open_block(screen(x_ND[rows]), key_N3[rows], 3, rows < standing) for rows in at]
    inner = [Groups.singles(len(rows)) for rows in at]
    groups = Groups.singles(rows)
    for turn in itertools.count():
        heard = [Heard.nothing(3, len(rows)) for rows in at]
        for one, other in itertools.combinations(range(blocks), 2):
            if meet[one, other]:
                *learnt, (left_L, right_L) = compare(parts[one], parts[other], rule)
                for block, news in zip((one, other), learnt, strict=True):
                    told_M = np.flatnonzero(news.told_N)
                    heard[block].add(told_M, news.take(told_M))
                if turn == 0:
                    groups.join(at[one][left_L], at[other][right_L])
        parts = [
            settle(part, news, rule, inside if turn == 0 else None)
            for part, news, inside in zip(parts, heard, inner, strict=True)
        ]
        if is_over(parts, mode):
            break

    place = {tuple(key): i for i, key in enumerate(key_N3.tolist())}
    exact_NN = x_ND.astype(np.float64) @ x_ND.astype(np.float64).T
    for rows_B, part, inside in zip(at, parts, inner, strict=True):
        for e, (stays_N, _, _) in enumerate(expected):
            np.testing.assert_array_equal(part.status_EN[e] == STAYS, stays_N[rows_B])
        first_N = expected[rule.chosen][1][rows_B]
        assert [place.get(tuple(key), -1) for key in part.first_N3.tolist()] == first_N.tolist()
        has_M = first_N >= 0
        np.testing.assert_array_equal(part.similarity_N[has_M], exact_NN[rows_B[has_M], first_N[has_M]].clip(-1, 1))
        groups.join(rows_B, rows_B[inside.label_N])
    pairs = set(zip(groups.label_N.tolist(), expected[rule.chosen][2].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_distinct_rows():
    x_ND = np.array([[0.6, 0.8], [1, 0], [0.6, 0.8], [0, 1], [1, 0]], dtype=np.float16)
    distinct_M, equal_N = distinct_rows(x_ND)
    np.testing.assert_array_equal(distinct_M, [0, 1, 3])
    np.testing.assert_array_equal(equal_N, [0, 1, 0, 2, 1])
    assert [len(part) for part in distinct_rows(x_ND[:0])] == [0, 0]
