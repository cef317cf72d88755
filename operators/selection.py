"""Exactly the best n rows of each group, found by counting: nothing is sorted, gathered or shuffled.

Rows are ordered by three 64-bit words: the value's `order_key`, then the high and the low half of the uid. So no two
rows are equal, and "the best n" is one set. A search holds a box for each group: bounds on the three words, between
which the last row to keep must lie. A round cuts each box into equal slices of its first word that is not yet known,
counts the rows in each slice on every worker, adds the counts up, and goes on with the slice that holds the last row. A
group is done when all rows in its box are to be kept; two to four rounds do for most.

The pure parts are here, in the order in which they are used: `summarise`, `begin`, then `narrow`, `count_digits` and
`choose_digits` until the search is done, then `cutoffs`, `last_kept`, `tighten` and `is_kept`. What a worker reports
(`Summary`, counts, last values) merges by adding or by minimum and maximum, so neither the number of workers nor their
order can matter. `pipeline/selection.py` spreads them.

Legend: N rows, G groups, O groups still open, B slices (a power of two), 3 the words of a key.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError, InputError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

MAX_COUNTERS = 1 << 20
"""Counters of one round, all groups together: 8 MB as int64."""

_TOP = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_SIGN = np.uint64(1 << 63)


class Keys(NamedTuple):
    """What the selection sees of N rows.

    Attributes:
        group_N: int32, from 0 to G - 1.
        value_N: uint64, `order_key` of the value: smallest is kept first.
        high_N: uint64, high half of the uid.
        low_N: uint64, low half of the uid.
    """

    group_N: NDArray[np.int32]
    value_N: Words
    high_N: Words
    low_N: Words

    def take(self, rows: Bools | slice) -> "Keys":
        """Some of the rows; a view where `rows` is a slice."""
        return Keys(self.group_N[rows], self.value_N[rows], self.high_N[rows], self.low_N[rows])


class Summary(NamedTuple):
    """How many rows each group has, and the smallest and largest value key among them."""

    size_G: Ints
    lowest_G: Words
    highest_G: Words


@dataclass(frozen=True)
class Search:
    """Where the last row to keep of each group must lie.

    Attributes:
        low_G3: uint64, the box from below, inclusive; words before the one being cut are known: low equals high.
        high_G3: uint64, the box from above, inclusive.
        size_G: int64, rows in the box.
        need_G: int64, how many of them to keep. Rows before the box are kept, rows behind it are not.
    """

    low_G3: Words
    high_G3: Words
    size_G: Ints
    need_G: Ints

    @property
    def open_G(self) -> Bools:
        """Groups whose last row is not found yet."""
        return (self.need_G > 0) & (self.need_G < self.size_G)

    @property
    def done(self) -> bool:
        """Whether every group is decided."""
        return not self.open_G.any()


@dataclass(frozen=True)
class Cutoffs:
    """The rule that decides each row alone: kept when some_G and its three words are at most those of the cut-off.

    Attributes:
        some_G: bool, False where the group keeps nothing.
        last_G3: uint64, the words of the cut-off, inclusive.
    """

    some_G: Bools
    last_G3: Words


def num_kept(keep_fraction: float, rows: int) -> int:
    """round-half-even(keep_fraction x rows), computed from the shortest decimal text of the fraction.

    So 0.1 means one tenth, not the binary number beside it, and no product is rounded twice.
    """
    if not 0 <= keep_fraction <= 1:
        raise ConfigError(f"keep_fraction must be in [0, 1], got {keep_fraction}")
    return round(Fraction(repr(float(keep_fraction))) * rows)


def order_key(values_N: NDArray[np.float64], descending: bool) -> Words:
    """A uint64 that sorts as the float64 does (or the other way round); -0.0 and 0.0 are equal, infinities are ends.

    The bits of a positive float sort as an unsigned integer with the sign bit set; those of a negative one reversed.

    Raises:
        InputError: a value is NaN and so has no place in any order.
    """
    if np.isnan(values_N).any():
        raise InputError(f"values to rank must not be NaN, got {int(np.isnan(values_N).sum())} of {values_N.size}")
    bits_N = (values_N.astype(np.float64) + 0.0).view(np.uint64)  # adding 0.0 turns -0.0 into 0.0
    ascending_N = bits_N ^ np.where(bits_N & _SIGN, _TOP, _SIGN)
    return ~ascending_N if descending else ascending_N


def values_of(keys_N: Words, descending: bool) -> NDArray[np.float64]:
    """The inverse of `order_key`."""
    ascending_N = ~keys_N if descending else keys_N
    return (ascending_N ^ np.where(ascending_N & _SIGN, _SIGN, _TOP)).view(np.float64)


def unit_values(hash_N: Words) -> NDArray[np.float64]:
    """Hashes that serve as value keys, as the draws from [0, 1] that they stand for."""
    return hash_N / 2.0**64


def summarise(keys: Keys, num_groups: int) -> Summary:
    """One worker's rows, counted by group."""
    assert keys.group_N.size == 0 or 0 <= keys.group_N.min() <= keys.group_N.max() < num_groups
    lowest_G, highest_G = np.full(num_groups, _TOP), np.zeros(num_groups, np.uint64)
    np.minimum.at(lowest_G, keys.group_N, keys.value_N)
    np.maximum.at(highest_G, keys.group_N, keys.value_N)
    return Summary(np.bincount(keys.group_N, minlength=num_groups), lowest_G, highest_G)


def merge_summaries(first: Summary, second: Summary) -> Summary:
    """The summary of both workers' rows."""
    return Summary(
        first.size_G + second.size_G,
        np.minimum(first.lowest_G, second.lowest_G),
        np.maximum(first.highest_G, second.highest_G),
    )


def begin(summary: Summary, quota_G: Ints) -> Search:
    """The search before its first round. Groups that keep nothing or everything are decided already.

    Raises:
        InputError: a quota is below 0 or above the size of its group.
    """
    wrong_G = (quota_G < 0) | (quota_G > summary.size_G)
    if wrong_G.any():
        group = int(np.argmax(wrong_G))
        size, quota = int(summary.size_G[group]), int(quota_G[group])
        raise InputError(f"the quota of group {group} must be between 0 and its {size} rows, got {quota}")
    low_G3 = np.zeros((quota_G.size, 3), np.uint64)
    high_G3 = np.full((quota_G.size, 3), _TOP)
    low_G3[:, 0], high_G3[:, 0] = summary.lowest_G, summary.highest_G
    return Search(low_G3, high_G3, summary.size_G, quota_G.astype(np.int64))


def narrow(search: Search, keys: Keys) -> Keys:
    """The undecided rows: those in the box of an open group. Boxes only shrink, so a worker may forget the others."""
    inside_N = search.open_G[keys.group_N]
    for word, words_N in enumerate(keys[1:]):
        inside_N &= words_N >= search.low_G3[keys.group_N, word]
        inside_N &= words_N <= search.high_G3[keys.group_N, word]
    return keys if inside_N.all() else keys.take(inside_N)


def count_digits(search: Search, keys: Keys) -> Ints:
    """Counts_OB: how many of one worker's undecided rows (`narrow`) lie in each slice of each open group's box."""
    num_bits = _digit_bits(search)
    word_G, shift_G = _cut(search, num_bits)
    slot_G = np.cumsum(search.open_G) - 1
    counts_OB = np.zeros((np.count_nonzero(search.open_G), 1 << num_bits), np.int64)
    for word, words_N in enumerate(keys[1:]):
        here_N = word_G[keys.group_N] == word
        group_M = keys.group_N[here_N]
        digits_M = (words_N[here_N] - search.low_G3[group_M, word]) >> shift_G[group_M]
        np.add.at(counts_OB.reshape(-1), (slot_G[group_M] << num_bits) + digits_M.astype(np.int64), 1)
    return counts_OB


def choose_digits(search: Search, counts_OB: Ints) -> Search:
    """Go on with the slice that holds the last row to keep, given the counts of all workers together."""
    word_G, shift_G = _cut(search, _digit_bits(search))
    open_O = np.flatnonzero(search.open_G)
    need_O, word_O, shift_O = search.need_G[open_O], word_G[open_O], shift_G[open_O]
    assert (counts_OB.sum(axis=1) == search.size_G[open_O]).all(), "counts must cover the rows in the box"
    assert (search.low_G3[open_O, 2] < search.high_G3[open_O, 2]).all(), "no uid may occur twice in a group"

    reached_OB = np.cumsum(counts_OB, axis=1)
    digit_O = np.argmax(reached_OB >= need_O[:, None], axis=1)
    rows = np.arange(open_O.size)
    size_O = counts_OB[rows, digit_O]
    need_O = need_O - (reached_OB[rows, digit_O] - size_O)

    low_G3, high_G3 = search.low_G3.copy(), search.high_G3.copy()
    low_O = low_G3[open_O, word_O] + (digit_O.astype(np.uint64) << shift_O)
    low_G3[open_O, word_O] = low_O
    slice_O = (np.uint64(1) << shift_O) - np.uint64(1)  # added last: the end of the last slice may lie beyond 2^64
    high_G3[open_O, word_O] = low_O + np.minimum(high_G3[open_O, word_O] - low_O, slice_O)
    size_G, need_G = search.size_G.copy(), search.need_G.copy()
    size_G[open_O], need_G[open_O] = size_O, need_O
    return Search(low_G3, high_G3, size_G, need_G)


def cutoffs(search: Search) -> Cutoffs:
    """The cut-offs of a search that is done."""
    assert search.done
    return Cutoffs(search.need_G > 0, search.high_G3)


def last_kept(rule: Cutoffs, keys: Keys) -> Words:
    """The largest value key that one worker keeps in each group, 0 where it keeps nothing; merges by maximum."""
    kept_N = is_kept(rule, *keys)
    last_G = np.zeros(rule.some_G.size, np.uint64)
    np.maximum.at(last_G, keys.group_N[kept_N], keys.value_N[kept_N])
    return last_G


def tighten(rule: Cutoffs, last_G: Words) -> Cutoffs:
    """The same decisions with the value of the last row that is kept in place of the end of its slice.

    It is what the ledger shows, and unlike the end of a slice it does not depend on how boxes are cut.
    """
    lowered_G = last_G < rule.last_G3[:, 0]
    last_G3 = np.where(lowered_G[:, None], _TOP, rule.last_G3)
    last_G3[:, 0] = last_G
    return replace(rule, last_G3=last_G3)


def is_kept(rule: Cutoffs, group_N: NDArray[np.int32], value_N: Words, high_N: Words, low_N: Words) -> Bools:
    """Bool_N: whether each row is among the best of its group. Any part of the rows, in any order."""
    last_value_N, last_high_N, last_low_N = (rule.last_G3[group_N, word] for word in range(3))
    kept_N: Bools = (high_N < last_high_N) | ((high_N == last_high_N) & (low_N <= last_low_N))
    kept_N &= value_N == last_value_N
    kept_N |= value_N < last_value_N
    kept_N &= rule.some_G[group_N]
    return kept_N


def cutoff_value(rule: Cutoffs, descending: bool) -> NDArray[np.float64]:
    """Float64_G: the value of the last row kept in each group, NaN where none is: the ledger's threshold."""
    return np.where(rule.some_G, values_of(rule.last_G3[:, 0], descending), np.nan)


def _digit_bits(search: Search) -> int:
    """Bits of a digit, the same for every worker: as many as have a use, and as the counters have room for."""
    num_open, largest = int(np.count_nonzero(search.open_G)), int(search.size_G[search.open_G].max(initial=0))
    room = (MAX_COUNTERS // max(1, num_open)).bit_length() - 1
    useful = max(largest.bit_length() + 1, room - 6)  # a 64th of the counters is cheaper than another round
    return max(1, min(room, useful))


def _cut(search: Search, num_bits: int) -> tuple[NDArray[np.int64], Words]:
    """The word that each group's box is cut along (the first not known), and log2 of the slices' width."""
    word_G = np.argmax(search.low_G3 < search.high_G3, axis=1)
    groups = np.arange(word_G.size)
    span_G = search.high_G3[groups, word_G] - search.low_G3[groups, word_G]
    return word_G, np.maximum(_bit_length(span_G) - num_bits, 0).astype(np.uint64)


def _bit_length(x_G: Words) -> NDArray[np.int64]:
    """Bits needed to write each number: smear the highest set bit downwards, then count."""
    for shift in (1, 2, 4, 8, 16, 32):
        x_G = x_G | (x_G >> np.uint64(shift))
    return np.bitwise_count(x_G).astype(np.int64)
