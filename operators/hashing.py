"""Where every random choice of the product comes from: a hash of the uid, or a generator, keyed by the run's seed.

Nothing here knows the worker, the time or the order of rows, so a choice repeats on any cluster and any platform.

Legend: N samples.
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def keyed_hash(high_N: NDArray[np.uint64], low_N: NDArray[np.uint64], seed: int, label: str) -> NDArray[np.uint64]:
    """A well-mixed 64-bit hash of each uid: a random order or a random draw that belongs to the sample itself.

    Two rounds of the splitmix64 finaliser absorb the halves of the uid and a third hides the key, so uids that count
    upwards give hashes as even as random uids do. Not meant to withstand someone who chooses uids to collide.

    Args:
        high_N: uint64, the high halves of the uids (`operators.uids.split_uids`).
        low_N: uint64, the low halves.
        seed: the run's seed, any integer.
        label: what the choice is for (a step's name); another label gives an unrelated hash.

    Returns:
        hash_N: uint64, uniform over the full range.

    Notes:
        Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, with the constants of
        Stafford's variant 13.
    """
    key = _key(b"winnow-hash-1", seed, label)
    first, second = np.uint64(key >> 64), np.uint64(key & 0xFFFF_FFFF_FFFF_FFFF)
    return _mix(_mix(_mix(high_N ^ first) ^ low_N) ^ second)


def generator(seed: int, *labels: str) -> np.random.Generator:
    """A generator of its own for each (seed, labels): `generator(seed, step, shard)`.

    Philox is counter-based: a 128-bit key is its whole state, so generators with different keys do not overlap.
    """
    return np.random.Generator(np.random.Philox(key=_key(b"winnow-generator-1", seed, *labels)))


def _key(purpose: bytes, seed: int, *labels: str) -> int:
    """128 bits from BLAKE2b. JSON keeps ("a", "b") and ("ab",) apart."""
    message = json.dumps([seed, *labels]).encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=16, key=purpose).digest(), "big")


def _mix(x_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection; each input bit flips each output bit about half the time."""
    mixed_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_N ^ (mixed_N >> np.uint64(31))
