import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.hashing import generator, keyed_hash

MASK = (1 << 64) - 1
WORD = st.integers(0, MASK)


def mix_by_hand(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_by_hand(high: int, low: int, seed: int, label: str) -> int:
    key = hashlib.blake2b(f'[{seed}, "{label}"]'.encode(), digest_size=16, key=b"winnow-hash-1").digest()
    first, second = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
    return mix_by_hand(mix_by_hand(mix_by_hand(high ^ first) ^ low) ^ second)


def words(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@given(high=WORD, low=WORD, seed=st.integers(-(2**70), 2**70), label=st.sampled_from(["", "prune", "fit"]))
def test_equals_arithmetic_on_python_integers(high, low, seed, label):
    assert keyed_hash(words(high), words(low), seed, label).tolist() == [hash_by_hand(high, low, seed, label)]


def test_values_never_change_between_releases():
    hashes = keyed_hash(words(0, 1, MASK), words(0, 2, MASK), 0, "prune")
    assert [f"{h:016x}" for h in hashes.tolist()] == ["ae6669d1c3bd539a", "fe20be19a4d776ef", "f2b6d047547f935a"]
    assert generator(0, "fit", "a.tar").integers(0, 1000, 4).tolist() == [269, 186, 119, 702]


def test_empty():
    hashes = keyed_hash(words(), words(), 0, "x")
    assert hashes.shape == (0,)
    assert hashes.dtype == np.uint64


def test_each_row_stands_alone():
    high, low = np.arange(100, dtype=np.uint64), np.arange(100, 200, dtype=np.uint64)
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(keyed_hash(high, low, 7, "x")[order], keyed_hash(high[order], low[order], 7, "x"))


@pytest.mark.parametrize("counts_up", ["high", "low"])
def test_counting_uids_hash_evenly(counts_up):
    count, zero = np.arange(1 << 16, dtype=np.uint64), np.zeros(1 << 16, np.uint64)
    high, low = (count, zero) if counts_up == "high" else (zero, count)
    hashes = keyed_hash(high, low, 0, "x")
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.01  # five standard deviations
    assert np.unique(hashes).size == hashes.size


def test_seed_label_and_halves_all_matter():
    high, low = words(*range(1, 1001)), words(*range(2001, 3001))
    base = keyed_hash(high, low, 0, "x")
    for other in (keyed_hash(high, low, 1, "x"), keyed_hash(high, low, 0, "y"), keyed_hash(low, high, 0, "x")):
        flipped = np.bitwise_count(base ^ other).mean()
        assert 31 < flipped < 33


def test_generators_repeat_and_differ():
    assert generator(3, "a", "b").random(5).tolist() == generator(3, "a", "b").random(5).tolist()
    draws = [
        generator(s, *labels).random()
        for s, labels in [(3, ("a", "b")), (3, ("ab",)), (4, ("a", "b")), (3, ("b", "a"))]
    ]
    assert len(set(draws)) == 4
