"""From decoded blocks to what each worker trains on: rows picked, templates drawn, images augmented.

Legend: M rows of a deal, N rows of one worker's hand, S steps of a deal, R workers, B pairs of one worker in a batch,
H, W height and width, C colours, L tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.training.augmentation import Augment, appearance_keys, augment, draw
from pipeline.training.decoding import Block

Ints = NDArray[np.int64]

_SLICE = 256
"""Images that are augmented together: what that takes besides, several copies of them, stays small."""


@dataclass(frozen=True)
class Dealing:
    """What all deals share.

    Attributes:
        seed: of the run.
        augment: what is changed of an image.
        sentences: by portion, the tokens of every template with every class, int32 (T, K, L).
    """

    seed: int
    augment: Augment | None
    sentences: Mapping[int, NDArray[np.int32]]


class Picks(NamedTuple):
    """The samples of a hand in the order in which they are seen, (N,) each.

    Attributes:
        block_N: index among the blocks given.
        row_N: in its block.
        portion_N: of the training set.
        epoch_N, repeat_N: when it is seen.
    """

    block_N: Ints
    row_N: Ints
    portion_N: Ints
    epoch_N: Ints
    repeat_N: Ints


class Hand(NamedTuple):
    """What one worker gets of a deal: its share of each batch, batch after batch, S x B rows.

    Attributes:
        pixels_NHWC: uint8.
        tokens_NL: int32.
        uids_N2: uint64, the halves of the uids.
    """

    pixels_NHWC: NDArray[np.uint8]
    tokens_NL: NDArray[np.int32]
    uids_N2: NDArray[np.uint64]


def share(rows: int, batch_size: int, workers: int) -> Ints:
    """Which rows of a deal each worker gets: of each batch, worker r gets pairs [r B, (r + 1) B).

    Args:
        rows: M, of S whole batches.
        batch_size: R x B.
        workers: R.

    Returns:
        int64 (R, N).
    """
    return np.arange(rows).reshape(-1, workers, batch_size // workers).swapaxes(0, 1).reshape(workers, -1)


def deal(shared: Dealing, picks: Picks, *blocks: Block) -> Hand:
    """Makes one worker's hand.

    Args:
        shared: the same for all deals.
        picks: of the hand.
        blocks: those that the picks are from.
    """
    block_N, row_N, portion_N, epoch_N, repeat_N = picks
    rows = len(row_N)
    pixels_NHWC = np.empty((rows, *blocks[0].pixels_NHWC.shape[1:]), dtype=np.uint8)
    uids_N2 = np.empty((rows, 2), dtype=np.uint64)
    classes_N = np.full(rows, -1, dtype=np.int64)
    tokens: dict[int, NDArray[np.int32]] = {}
    for index in np.unique(block_N).tolist():
        here_N, block = block_N == index, blocks[index]
        pixels_NHWC[here_N] = block.pixels_NHWC[row_N[here_N]]
        uids_N2[here_N, 0], uids_N2[here_N, 1] = block.high_N[row_N[here_N]], block.low_N[row_N[here_N]]
        if block.classes_N is not None:
            classes_N[here_N] = block.classes_N[row_N[here_N]]
        else:
            assert block.tokens_NL is not None
            tokens[index] = block.tokens_NL
    keys_N = appearance_keys(uids_N2[:, 0], uids_N2[:, 1], epoch_N, repeat_N, shared.seed)
    length = next(iter([*tokens.values(), *shared.sentences.values()])).shape[-1]
    tokens_NL = np.empty((rows, length), dtype=np.int32)
    for index, tokens_ML in tokens.items():
        here_N = block_N == index
        tokens_NL[here_N] = tokens_ML[row_N[here_N]]
    for portion, sentences_TKL in shared.sentences.items():
        here_N = portion_N == portion
        template_M = np.floor(draw(keys_N[here_N], "template") * len(sentences_TKL)).astype(np.int64)
        tokens_NL[here_N] = sentences_TKL[template_M, classes_N[here_N]]
    if shared.augment is not None:
        for start in range(0, rows, _SLICE):
            part = slice(start, start + _SLICE)
            pixels_NHWC[part] = augment(pixels_NHWC[part], keys_N[part], shared.augment)
    return Hand(pixels_NHWC, tokens_NL, uids_N2)
