"""Sample identity: 16 bytes, shown as 32 lower-case hexadecimal digits.

Legend: N samples.
"""

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

UID_BYTES = 16
UID_PAIR = np.dtype([("f0", "<u8"), ("f1", "<u8")])
"""DataComp's subset dtype `u8,u8`: the high and the low 64 bits of a uid."""

_HEX = re.compile(r"[0-9a-fA-F]{32}\Z")


def derive_uid(shard: str, key: str) -> bytes:
    """The uid of a sample that brings none: BLAKE2b-128 over shard name, NUL, sample key."""
    name = f"{shard}\0{key}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(name, digest_size=UID_BYTES, key=b"winnow-uid-1").digest()


def parse_uid(value: object) -> bytes | None:
    """The 16 bytes of a supplied uid, or None when it is not 32 hexadecimal digits."""
    if isinstance(value, str) and _HEX.match(value):
        return bytes.fromhex(value)
    return None


def split_uids(uids_N: NDArray[np.void]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The high and low 64 bits of each uid, in native byte order, so that (high, low) sorts as the hex text does.

    Args:
        uids_N: dtype `V16` or any contiguous array of 16 bytes a row.
    """
    pairs = np.frombuffer(np.ascontiguousarray(uids_N).tobytes(), dtype=">u8").reshape(-1, 2)
    return pairs[:, 0].astype(np.uint64), pairs[:, 1].astype(np.uint64)


def join_uids(high_N: NDArray[np.uint64], low_N: NDArray[np.uint64]) -> bytes:
    """The inverse of `split_uids`: 16 N bytes, row after row."""
    return np.stack([high_N, low_N], axis=1).astype(">u8").tobytes()
