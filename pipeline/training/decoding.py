"""A shard's usable rows as blocks of uint8 pixels and tokens, in the object store.

Legend: N rows of a block, H height, W width, C colours (RGB), L tokens.
"""

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.encoders.base import Preprocessor
from operators.encoders.settings import OpenClipSettings
from operators.errors import InputError
from operators.images import decode
from pipeline.models import build_preprocessor
from pipeline.readers import read_shard
from pipeline.readers.sample import RawSample
from pipeline.training.examples import Piece, Usable, read_usable

BLOCK_BYTES = 32 * 2**20
_PAUSES = (1.0, 5.0)
"""Seconds before a shard that could not be read is tried again: a store may be busy, a mount gone for a while."""


class Block(NamedTuple):
    """Consecutive usable rows of one shard.

    Attributes:
        pixels_NHWC: uint8, of the model's input size.
        high_N, low_N: halves of the uids.
        tokens_NL: int32, of the samples' own captions; None where they have classes.
        classes_N: int64; None where they have captions.
    """

    pixels_NHWC: NDArray[np.uint8]
    high_N: NDArray[np.uint64]
    low_N: NDArray[np.uint64]
    tokens_NL: NDArray[np.int32] | None
    classes_N: NDArray[np.int64] | None


class Failed(NamedTuple):
    """Stands for blocks that could not be had, so that what only waits for their end goes on.

    Attributes:
        error: why.
    """

    error: Exception


def decode_piece(piece: Piece, model: OpenClipSettings, rows_per_block: int) -> Iterator[Block | Failed | None]:
    """The blocks of a shard, and then their end: None. Whatever goes wrong is tried again, then stands in their place.

    Args:
        piece: the shard and its usable rows.
        model: whose reference transform and tokenizer.
        rows_per_block: of every block but the last.

    Yields:
        one value for each block, and one more.
    """
    given = 0
    for pause in (*_PAUSES, None):
        try:
            for number, block in enumerate(decode_shard(piece, model, rows_per_block)):
                if number == given:  # those before it were given by an earlier attempt: equal ones
                    given += 1
                    yield block
            yield None
            return
        except Exception as error:
            if pause is None:
                yield from [Failed(error)] * (num_blocks(piece, rows_per_block) - given + 1)
        if pause is not None:
            time.sleep(pause)


def num_blocks(piece: Piece, rows_per_block: int) -> int:
    """How many blocks a shard comes to."""
    return -(-piece.rows // rows_per_block)


def decode_shard(piece: Piece, model: OpenClipSettings, rows_per_block: int) -> Iterator[Block]:
    """Reads, decodes and tokenises a shard.

    Args:
        piece: the shard and its usable rows.
        model: whose reference transform and tokenizer.
        rows_per_block: of every block but the last.

    Raises:
        InputError: the shard no longer holds every row.
    """
    usable = read_usable(piece)
    preprocessor = _preprocessor(model)
    pixels: list[NDArray[np.uint8]] = []
    first = 0
    for sample in read_shard(piece.pool, piece.shard, rows=usable.rows):
        if not isinstance(sample, RawSample):
            break
        decoded = decode(sample.image, max_pixels=piece.pool.max_pixels, draft=preprocessor.draft)
        pixels.append(preprocessor.image(decoded.image))
        if len(pixels) == rows_per_block:
            yield _block(preprocessor, usable, first, pixels)
            first, pixels = first + len(pixels), []
    if first + len(pixels) != len(usable.rows):
        rule = f"must still hold the {len(usable.rows)} rows that were read from it"
        raise InputError(f"shard {piece.shard.name} {rule}, got {first + len(pixels)}: run again once it is back")
    if pixels:
        yield _block(preprocessor, usable, first, pixels)


def _block(preprocessor: Preprocessor, usable: Usable, first: int, pixels: list[NDArray[np.uint8]]) -> Block:
    part = slice(first, first + len(pixels))
    captions: list[Any] = usable.captions[part]
    labelled = isinstance(captions[0], int)
    return Block(
        pixels_NHWC=np.stack(pixels),
        high_N=usable.high_N[part],
        low_N=usable.low_N[part],
        tokens_NL=None if labelled else preprocessor.text(captions),
        classes_N=np.asarray(captions, dtype=np.int64) if labelled else None,
    )


@functools.cache
def _preprocessor(model: OpenClipSettings) -> Preprocessor:
    return build_preprocessor(model)
