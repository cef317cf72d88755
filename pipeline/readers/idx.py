"""IDX files (MNIST and its kin), gzipped or not: grey images of one size, with labels in a second file.

Both hold a big-endian header and then unsigned bytes: magic 0x803, count, height, width and the pixels row by row for
images; magic 0x801, count and one byte each for labels. An image becomes a PNG, which loses nothing.
(http://yann.lecun.com/exdb/mnist/)
"""

import io
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np
from PIL import Image

from operators.errors import InputError
from operators.rejects import Damage
from pipeline.pool import Pool, Shard, Source
from pipeline.readers.sample import RawSample, ShardDamagedError
from pipeline.readers.stream import open_unzipped

IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
IMAGES_HEADER, LABELS_HEADER = struct.Struct(">4I"), struct.Struct(">2I")


def read_idx(pool: Pool, shard: Shard, rows: frozenset[int] | None, members: bool) -> Iterator[RawSample]:
    """Yields the images of a file, or those of `rows` only; see `pipeline.readers.read_shard`."""
    storage = pool.sources[shard.source].storage
    with ExitStack() as files:
        stream = files.enter_context(open_unzipped(shard.url, storage))
        count, height, width = _read_images_header(stream, pool.max_pixels)
        labels = None
        if shard.files:
            labels = files.enter_context(open_unzipped(shard.files[0][0], storage))
            _read_labels_header(labels, count)
        for row in range(count):
            label = None if labels is None else _take(labels, 1, f"labels end before row {row}")[0]
            if rows is not None and row not in rows:
                continue
            offset = IMAGES_HEADER.size + row * height * width
            stream.seek(offset)
            image = _encode(_take(stream, height * width, f"ends inside row {row}"), height, width)
            yield RawSample(
                row=row,
                key=f"{row:08d}",
                image=image,
                ext="png",
                offset=offset,
                metadata=None if label is None else {"label": label},
                members={"png": image} if members else {},
            )


def read_one(pool: Pool, shard: Shard, row: int, offset: int, nbytes: int) -> bytes:
    """The image at a byte offset, as PNG."""
    with open_unzipped(shard.url, pool.sources[shard.source].storage) as stream:
        _, height, width = _read_images_header(stream, pool.max_pixels)
        stream.seek(offset)
        return _encode(_take(stream, height * width, f"ends inside row {row}"), height, width)


def check_idx(source: Source, shard: Shard) -> None:
    """Refuses labels that are not those of the images.

    Raises:
        InputError: the counts differ.
    """
    with open_unzipped(shard.url, source.storage) as stream:
        count, _, _ = _read_images_header(stream, max_pixels=2**62)
    if shard.files:
        url = shard.files[0][0]
        with open_unzipped(url, source.storage) as stream:
            try:
                _read_labels_header(stream, count)
            except ShardDamagedError as error:
                raise InputError(f"labels of {shard.url} must be one for each image, got {url}: {error}") from error


def _read_images_header(stream: BinaryIO, max_pixels: int) -> tuple[int, int, int]:
    """Count, height and width."""
    header = stream.read(IMAGES_HEADER.size)
    if len(header) < IMAGES_HEADER.size:
        raise ShardDamagedError(Damage.UNREADABLE, "ends inside its header")
    magic, count, height, width = IMAGES_HEADER.unpack(header)
    if magic != IMAGES_MAGIC or not 0 < height * width <= max_pixels:
        raise ShardDamagedError(
            Damage.UNREADABLE,
            f"header must be that of 8-bit images of 1 to {max_pixels} pixels, got {header.hex()}",
        )
    return count, height, width


def _read_labels_header(stream: BinaryIO, num_images: int) -> None:
    header = stream.read(LABELS_HEADER.size)
    if header != LABELS_HEADER.pack(LABELS_MAGIC, num_images):
        raise ShardDamagedError(
            Damage.UNREADABLE, f"label header must be that of {num_images} 8-bit labels, got {header.hex()}"
        )


def _take(stream: BinaryIO, size: int, message: str) -> bytes:
    """The next `size` bytes, all of them."""
    try:
        data = stream.read(size)
    except EOFError:
        data = b""
    if len(data) < size:
        raise ShardDamagedError(Damage.TRUNCATED, message)
    return data


def _encode(pixels: bytes, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(height, width)).save(buffer, "PNG")
    return buffer.getvalue()
