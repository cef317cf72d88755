"""Which of the rows that are near each other stay: duplicates settled block by block, for several epsilons at once.

Rows have an order: the lowest key first. Two rows that were compared and are near are neighbours.

- `cover`: a row stays when none of its earlier neighbours stays. So the rows that stay are the first maximal
  independent set in the order: no two of them are neighbours, and whoever goes has an earlier neighbour that stays.
- `reference`: a row goes when it has any earlier neighbour (Abbas et al. 2023, arXiv 2303.09540, algorithm A7). So of a
  chain a ~ b ~ c both b and c go, though c may be far from a.

Both are properties of the graph and the order alone, however the rows are cut into blocks. Inside a block `settle`
decides row by row. Between blocks `compare` tells each row what it learns from the other block; a row whose earlier
neighbour there is undecided waits. They take turns, `compare` before `settle`, until a turn begins with nobody waiting
(`is_over`): the first undecided row of all is always decided, and few turns do, since most rows have no neighbour in
another block. The last turn decides nothing; in it rows hear of representatives that were decided after them.

The representative of a row that goes is the first of its earlier neighbours that stays (`reference`: the first of its
earlier neighbours).

Rows that stand, of which an earlier deduplication has decided, stay whatever they are near. They are the first in the
order, and are not compared with each other.

Legend: N rows of a block, B some of them, P pairs, E epsilons, ascending.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from operators.near_pairs import TILE, Pairs, Screened, exact_pairs, near_pairs

Mode = Literal["cover", "reference"]

UNDECIDED, STAYS, GOES = np.int8(0), np.int8(1), np.int8(2)
_NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int8))
LAST_KEY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Rule:
    """What all comparisons of one deduplication share.

    Attributes:
        mode: see the module.
        threshold_E: `near_pairs.thresholds` of the epsilons.
        chosen: index of the epsilon that representatives and groups are for.
        threads: tiles at once. Changes no answer.
    """

    mode: Mode
    threshold_E: NDArray[np.float64]
    chosen: int
    threads: int = 1


@dataclass(frozen=True)
class Block:
    """Rows in their order, and what is known of them.

    Attributes:
        rows: made ready by `near_pairs.screen`.
        key_N3: uint64, what orders rows, across blocks too: a priority, and the two halves of the uid. Ascending.
        status_EN: int8, UNDECIDED, STAYS or GOES at each epsilon.
        open_N: the rows that were undecided before the last `settle`, so that others may not know what became of
            them; at first all.
        first_N3: uint64, the key of the representative at the chosen epsilon as far as is known, else all ones.
        similarity_N: float64, the exact cosine to it, else NaN.
    """

    rows: Screened
    key_N3: Words
    status_EN: NDArray[np.int8]
    open_N: Bools
    first_N3: Words
    similarity_N: NDArray[np.float64]

    def take(self, chosen_B: Ints) -> "Block":
        """Some of the rows, in the same order."""
        return Block(
            self.rows.take(chosen_B),
            self.key_N3[chosen_B],
            self.status_EN[:, chosen_B],
            self.open_N[chosen_B],
            self.first_N3[chosen_B],
            self.similarity_N[chosen_B],
        )

    @property
    def waits(self) -> bool:
        """Whether some row is undecided at some epsilon."""
        return bool((self.status_EN == UNDECIDED).any())


@dataclass
class Heard:
    """What the rows of a block learn from rows elsewhere.

    Attributes:
        goes_EN: bool, an earlier neighbour stays.
        waits_EN: bool, an earlier neighbour is undecided.
        first_N3, similarity_N: as in `Block`, of the neighbours elsewhere.
    """

    goes_EN: Bools
    waits_EN: Bools
    first_N3: Words
    similarity_N: NDArray[np.float64]

    @staticmethod
    def nothing(epsilons: int, rows: int) -> "Heard":
        """What rows know that were compared with nobody."""
        goes_EN, waits_EN = np.zeros((2, epsilons, rows), dtype=bool)
        return Heard(goes_EN, waits_EN, np.full((rows, 3), LAST_KEY), np.full(rows, np.nan))

    def take(self, chosen_B: slice | Ints) -> "Heard":
        """What some of the rows learn."""
        return Heard(
            self.goes_EN[:, chosen_B], self.waits_EN[:, chosen_B], self.first_N3[chosen_B], self.similarity_N[chosen_B]
        )

    @property
    def told_N(self) -> Bools:
        """Whether a row learns anything."""
        told_N: Bools = self.goes_EN.any(axis=0) | self.waits_EN.any(axis=0) | (self.first_N3 != LAST_KEY).any(axis=1)
        return told_N

    def add(self, row_B: Ints, other: "Heard") -> None:
        """Takes in what the rows at these positions learnt elsewhere; in any order."""
        self.goes_EN[:, row_B] |= other.goes_EN
        self.waits_EN[:, row_B] |= other.waits_EN
        better_B = _earlier(other.first_N3, self.first_N3[row_B])
        self.first_N3[row_B[better_B]] = other.first_N3[better_B]
        self.similarity_N[row_B[better_B]] = other.similarity_N[better_B]


@dataclass
class Groups:
    """Connected groups of neighbours at the chosen epsilon.

    Attributes:
        label_N: int64, the lowest position in each row's group.
    """

    label_N: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @staticmethod
    def singles(rows: int) -> "Groups":
        """Every row on its own."""
        return Groups(np.arange(rows))

    def join(self, row_P: Ints, column_P: Ints) -> Bools:
        """Joins the groups of each pair. Returns which pairs would do for it: few of them."""
        first_P, second_P = self.label_N[row_P], self.label_N[column_P]
        new_P: Bools = first_P != second_P
        new_P[1:] &= (first_P[1:] != first_P[:-1]) | (second_P[1:] != second_P[:-1])  # runs of one row say the same
        if not new_P.any():
            return new_P
        ends, number_2P = np.unique(np.stack([first_P[new_P], second_P[new_P]]), return_inverse=True)
        one, other = number_2P.reshape(2, -1)
        graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(ends), len(ends)))
        count, part = connected_components(graph, directed=False)
        lowest = np.full(count, len(self.label_N))
        np.minimum.at(lowest, part, ends)
        renamed = np.arange(len(self.label_N))
        renamed[ends] = lowest[part]
        self.label_N = renamed[self.label_N]
        return new_P


def distinct_rows(x_ND: NDArray[np.float16]) -> tuple[Ints, Ints]:
    """Which rows differ from all before them, and for each row the place of its first equal among those.

    A row that equals an earlier one byte for byte has the same neighbours and that one besides. So it goes at every
    epsilon: with the representative of its first equal where that goes, else with the first equal itself.

    Args:
        x_ND: float16; none of them zero.

    Returns:
        distinct_M, positions, ascending; equal_N, positions in it.
    """
    bytes_N = np.ascontiguousarray(x_ND).view(f"V{x_ND.shape[1] * x_ND.itemsize}")[:, 0]
    _, first_U, number_N = np.unique(bytes_N, return_index=True, return_inverse=True)
    order_U = np.argsort(first_U)
    rank_U = np.empty(len(first_U), np.int64)
    rank_U[order_U] = np.arange(len(first_U))
    return first_U[order_U], rank_U[number_N]


def open_block(rows: Screened, key_N3: Words, epsilons: int, stands_N: Bools | None = None) -> Block:
    """A block of which nothing is known, but for the rows that stand.

    Args:
        rows: in the order of their keys.
        key_N3: uint64, ascending, no two alike.
        epsilons: how many.
        stands_N: bool, which rows stand; None for none.
    """
    heard = Heard.nothing(epsilons, len(rows))
    status_EN = np.full((epsilons, len(rows)), UNDECIDED)
    if stands_N is not None:
        status_EN[:, stands_N] = STAYS
    return Block(rows, key_N3, status_EN, np.ones(len(rows), dtype=bool), heard.first_N3, heard.similarity_N)


def settle(block: Block, heard: Heard | None, rule: Rule, groups: Groups | None = None) -> Block:
    """Decides every row of a block that need not wait for another block.

    Rows that do not stay are compared with the earlier rows that were undecided: the first time with all earlier rows,
    every pair once.

    Args:
        block: its rows.
        heard: what they learnt from other blocks since the last time; None where there is no other block.
        rule: of this deduplication.
        groups: gains the groups inside the block. For the first time only, when every pair is seen; rows that stand
            are seen then only.
    """
    block = replace(block, status_EN=block.status_EN.copy(), open_N=(block.status_EN == UNDECIDED).any(axis=0))
    known = Heard.nothing(len(block.status_EN), len(block.rows))
    if heard:
        known.add(np.arange(len(block.rows)), heard)
    open_M = np.flatnonzero(block.open_N if groups is None else np.ones_like(block.open_N))
    target_M = np.flatnonzero((block.status_EN != STAYS).any(axis=0))
    before_M = np.searchsorted(open_M, target_M)
    tiles = near_pairs(
        block.rows.take(target_M),
        block.rows.take(open_M),
        rule.threshold_E,
        columns_of=before_M,
        threads=rule.threads,
    )
    first_N = np.full(len(block.rows), -1)
    tile = next(tiles, None)
    for start in range(0, len(target_M), TILE):
        target_B = target_M[start : start + TILE]
        inside = []
        while tile is not None and tile.row_P[0] < start + TILE:
            pairs = Pairs(target_M[tile.row_P], open_M[tile.column_P], tile.level_P)
            if groups:
                linked = pairs.take(pairs.level_P <= rule.chosen)
                groups.join(linked.row_P, linked.column_P)
            earlier_P = pairs.column_P < target_B[0]
            _hear(known, first_N, pairs.take(earlier_P), block.status_EN, rule)
            inside.append(pairs.take(~earlier_P))
            tile = next(tiles, None)
        _decide(block.status_EN, known, target_B, inside, rule)
        for pairs in inside:
            _hear(known, first_N, pairs, block.status_EN, rule)
    near_M = np.flatnonzero(first_N >= 0)
    own = Heard.nothing(len(block.status_EN), len(block.rows))
    own.first_N3[near_M] = block.key_N3[first_N[near_M]]
    own.similarity_N[near_M] = exact_pairs(block.rows, block.rows, near_M, first_N[near_M])
    known.add(np.arange(len(block.rows)), own)
    known.add(np.arange(len(block.rows)), replace(own, first_N3=block.first_N3, similarity_N=block.similarity_N))
    return replace(block, first_N3=known.first_N3, similarity_N=known.similarity_N)


def compare(left: Block, right: Block, rule: Rule) -> tuple[Heard, Heard, tuple[Ints, Ints]]:
    """Tells the rows of two blocks what they learn from each other.

    Pairs of which neither row was undecided lately are left out: both know of each other.

    Returns:
        what the rows of each block learn, and pairs of (left, right) positions that connect the same rows as all
        near pairs at the chosen epsilon do. They are few; complete when all rows of both blocks are undecided.
    """
    rank_N = _ranks(left.key_N3, right.key_N3)
    ranks = rank_N[: len(left.rows)], rank_N[len(left.rows) :]
    heard = tuple(Heard.nothing(len(rule.threshold_E), len(block.rows)) for block in (left, right))
    firsts = tuple(np.full(len(block.rows), -1) for block in (left, right))
    groups = Groups.singles(len(rank_N))
    links: list[tuple[Ints, Ints]] = []
    for row_M, column_M in _pairings(left, right):
        for tile in near_pairs(
            left.rows.take(row_M), right.rows.take(column_M), rule.threshold_E, threads=rule.threads
        ):
            pairs = Pairs(row_M[tile.row_P], column_M[tile.column_P], tile.level_P)
            later_P = ranks[0][pairs.row_P] > ranks[1][pairs.column_P]
            _hear(heard[0], firsts[0], pairs.take(later_P), right.status_EN, rule)
            back = pairs.take(~later_P)
            by_column = np.lexsort((back.row_P, back.column_P))
            back = Pairs(back.column_P[by_column], back.row_P[by_column], back.level_P[by_column])
            _hear(heard[1], firsts[1], back, left.status_EN, rule)
            linked = pairs.take(pairs.level_P <= rule.chosen)
            needed_P = groups.join(linked.row_P, linked.column_P + len(left.rows))
            links.append((linked.row_P[needed_P], linked.column_P[needed_P]))
    for (own, other), near, first_N in zip(((left, right), (right, left)), heard, firsts, strict=True):
        near_M = np.flatnonzero(first_N >= 0)
        near.first_N3[near_M] = other.key_N3[first_N[near_M]]
        near.similarity_N[near_M] = exact_pairs(own.rows, other.rows, near_M, first_N[near_M])
    left_L, right_L = (np.concatenate([ends[i] for ends in [_NO_PAIRS, *links]]) for i in range(2))
    return heard[0], heard[1], (left_L, right_L)


def is_over(blocks: Iterable[Block], mode: Mode) -> bool:
    """Whether the turn that has just settled these blocks, all there are, was the last."""
    if mode == "reference":
        return True
    return not any(block.open_N.any() for block in blocks)


def removed(block: Block) -> Ints:
    """removed_E: how many rows go at each epsilon."""
    assert not block.waits
    removed_E: Ints = (block.status_EN == GOES).sum(axis=1)
    return removed_E


def _hear(heard: Heard, first_N: Ints, pairs: Pairs, status_EM: NDArray[np.int8], rule: Rule) -> None:
    """Each pair's row learns the status of its column, an earlier neighbour. Pairs by row, then by column."""
    for e in range(len(rule.threshold_E)):
        near = pairs.take(pairs.level_P <= e) if e < len(rule.threshold_E) - 1 else pairs
        if not len(near.row_P):
            continue
        status_P = status_EM[e, near.column_P]
        stays_P = status_P == STAYS if rule.mode == "cover" else np.ones(len(status_P), dtype=bool)
        heard.goes_EN[e, near.row_P[stays_P]] = True
        heard.waits_EN[e, near.row_P[~stays_P & (status_P == UNDECIDED)]] = True
        if e == rule.chosen:
            row_S, start_S = np.unique(
                near.row_P[stays_P], return_index=True
            )  # rows are ascending, so start_S is first
            column_S = near.column_P[stays_P][start_S]
            better_S = (first_N[row_S] < 0) | (column_S < first_N[row_S])
            first_N[row_S[better_S]] = column_S[better_S]


def _decide(status_EN: NDArray[np.int8], known: Heard, target_B: Ints, inside: Sequence[Pairs], rule: Rule) -> None:
    """Decides the rows of one strip, all earlier ones being decided or waiting.

    Args:
        status_EN: of the block; changed in place.
        known: what the rows learnt of rows outside the strip.
        target_B: positions of the strip's rows.
        inside: the pairs with both rows in the strip.
        rule: of this deduplication.
    """
    row_P, column_P, level_P = (np.concatenate([pairs[i] for pairs in [_NO_PAIRS, *inside]]) for i in range(3))
    for e in range(len(rule.threshold_E)):
        near_P = level_P <= e
        status_N, goes_N = status_EN[e], known.goes_EN[e].copy()
        if rule.mode == "reference":
            goes_N[row_P[near_P]] = True
            status_N[target_B] = np.where(goes_N[target_B], GOES, STAYS)
            continue
        row_Q, column_Q = row_P[near_P], column_P[near_P]
        while True:  # at most once for each row of the longest chain of neighbours
            waits_N = known.waits_EN[e].copy()
            waits_N[row_Q[status_N[column_Q] == UNDECIDED]] = True
            goes_N[row_Q[status_N[column_Q] == STAYS]] = True
            open_B = target_B[status_N[target_B] == UNDECIDED]
            lost_B, safe_B = open_B[goes_N[open_B]], open_B[~goes_N[open_B] & ~waits_N[open_B]]
            status_N[lost_B], status_N[safe_B] = GOES, STAYS
            if (not len(lost_B) and not len(safe_B)) or not len(row_Q):
                break


def _pairings(left: Block, right: Block) -> list[tuple[Ints, Ints]]:
    """Which rows to compare with which: those that may have news with those that it concerns, each pair once.

    Rows that were undecided lately and did not go have news; it concerns rows that do not stay.
    """
    news_M, news_L = (block.open_N & (block.status_EN != GOES).any(axis=0) for block in (left, right))
    concerned_M, concerned_L = ((block.status_EN != STAYS).any(axis=0) for block in (left, right))
    parts = [
        (news_M, concerned_L),
        (concerned_M, news_L & ~concerned_L),
        (concerned_M & ~news_M, news_L & concerned_L),
    ]
    return [(np.flatnonzero(rows), np.flatnonzero(columns)) for rows, columns in parts if rows.any() and columns.any()]


def _ranks(first_N3: Words, second_M3: Words) -> Ints:
    """The place of each key among all keys of both."""
    keys = np.concatenate([first_N3, second_M3])
    order = np.lexsort(keys.T[::-1])
    rank = np.empty(len(keys), np.int64)
    rank[order] = np.arange(len(keys))
    return rank


def _earlier(first_B3: Words, second_B3: Words) -> Bools:
    """Whether each first key is lower than the second."""
    less_B3, same_B3 = first_B3 < second_B3, first_B3 == second_B3
    earlier_B: Bools = less_B3[:, 0] | same_B3[:, 0] & (less_B3[:, 1] | same_B3[:, 1] & less_B3[:, 2])
    return earlier_B
