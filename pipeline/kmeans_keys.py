"""The order in which k-means draws rows: by a hash of the uid, keyed by the seed. Apart, as it needs no torch.

Legend: N rows, B rows of a block.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from operators.hashing import keyed_hash
from operators.selection import Keys

Loaded = tuple[NDArray[np.float16], NDArray[np.uint64], NDArray[np.uint64]]
"""x_BD (unit rows) and the high and low halves of their uids."""
Loader = Callable[[], Iterable[Loaded]]
"""Gives the rows of one part block by block, at least one block, the same each time; picklable."""


def draw_keys(high_N: NDArray[np.uint64], low_N: NDArray[np.uint64], seed: int) -> Keys:
    """Keys for a random draw of rows: all are one group; a draw of n rows is part of every larger one."""
    return Keys(np.zeros(len(high_N), np.int32), keyed_hash(high_N, low_N, seed, "kmeans"), high_N, low_N)


def load_keys(loader: Loader, seed: int) -> Keys:
    """The keys of all rows of a part, without holding the rows."""
    blocks = [draw_keys(high_B, low_B, seed) for _, high_B, low_B in loader()]
    return Keys(*map(np.concatenate, zip(*blocks, strict=True)))
