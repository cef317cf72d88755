"""Captions as numbers of a small vocabulary: CLIP's byte pairs, of which only those that are common are told apart.

A reconstruction is a choice among all tokens at every masked place; of CLIP's 49,408 a trusted set uses few.

Legend: N captions, L places, V tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip

PAD, UNKNOWN = 0, 1
_FIRST = 2


class Vocabulary:
    """CLIP's byte pairs numbered anew, the commonest first; 0 fills up captions, 1 is any other token.

    Attributes:
        pairs_V: int64, CLIP's number of each token from 2 on.
    """

    def __init__(self, pairs_V: NDArray[np.int64]) -> None:
        self.pairs_V = pairs_V

    def __len__(self) -> int:
        return _FIRST + len(self.pairs_V)

    def encode(self, captions: Iterable[str], length: int) -> NDArray[np.int64]:
        """Token_NL: captions cut or filled up to L places."""
        rows = [[self._numbers.get(pair, UNKNOWN) for pair in pairs[:length]] for pairs in byte_pairs(captions)]
        token_NL = np.full((len(rows), length), PAD, dtype=np.int64)
        for token_L, row in zip(token_NL, rows, strict=True):
            token_L[: len(row)] = row
        return token_NL

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {pair: number for number, pair in enumerate(self.pairs_V.tolist(), start=_FIRST)}


def learn_vocabulary(captions: Sequence[str], size: int) -> Vocabulary:
    """The vocabulary of the `size` commonest byte pairs of some captions; of equally common ones CLIP's first."""
    counts: Counter[int] = Counter()
    for pairs in byte_pairs(captions):
        counts.update(pairs)
    ranked = sorted(counts, key=lambda pair: (-counts[pair], pair))
    return Vocabulary(np.array(ranked[:size], dtype=np.int64))


def byte_pairs(captions: Iterable[str]) -> Iterable[list[int]]:
    """CLIP's tokens of each caption, without those that mark its ends."""
    return map(_tokenizer().encode, captions)


@cache
def _tokenizer() -> Any:
    return open_clip.SimpleTokenizer()
