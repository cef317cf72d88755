"""Images and captions of chosen samples, decoded: for training a filter in one place, and for scoring shard by shard.

Legend: N samples, H height, W width, C colours (RGB).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps

from operators.errors import InputError
from operators.images import decode
from operators.uids import split_uids
from pipeline.columns import present, uid_rows
from pipeline.filters.drawing import Drawn
from pipeline.pool import Pool, Shard
from pipeline.readers import RawSample, read_shard
from pipeline.storage import Store
from pipeline.units import Unit, read_unit

PAIR_COLUMNS = {name: name for name in ("uid", "row", "caption", "image_hash", "reason")}
"""What a plan must read of `samples` so that pairs can be decoded by it."""

_BATCH = 256


def has_image(table: pa.Table) -> NDArray[np.bool_]:
    """Bool_N: the rows that have an image which can be decoded."""
    return ~present(table["reason"]) & present(table["image_hash"])


def has_pair(table: pa.Table) -> NDArray[np.bool_]:
    """Bool_N: the rows that have such an image and a caption."""
    return has_image(table) & present(table["caption"])


@dataclass(frozen=True)
class Pairs:
    """Some samples.

    Attributes:
        high_N, low_N: uint64, the halves of their uids.
        pixels_NHWC: uint8, the centre of each image at the size asked for.
        captions: N of them, None where there is none.
    """

    high_N: NDArray[np.uint64]
    low_N: NDArray[np.uint64]
    pixels_NHWC: NDArray[np.uint8]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class PairReader:
    """Reads the images of samples. Small and picklable: it travels to the workers.

    Attributes:
        store: of the workspace, where the samples are listed.
        pool: that the shards belong to.
        size: side of the square that images are cut and scaled to.
    """

    store: Store
    pool: Pool
    size: int

    def drawn(self, unit: Unit, shard: Shard, drawn: Drawn) -> Pairs:
        """The pairs of one shard that were drawn."""
        table, _ = read_unit(self.store, unit)
        return join_pairs([*self.batches(shard, table.filter(pa.array(drawn.of(table)))), self._none])

    def batches(self, shard: Shard, table: pa.Table) -> Iterator[Pairs]:
        """The pairs of a shard that a table of `PAIR_COLUMNS` lists, in its order, some hundred at a time.

        Raises:
            InputError: the shard no longer holds them all.
        """
        wanted = table["row"].to_pylist()
        images: list[NDArray[np.uint8]] = []
        start = 0
        for sample in read_shard(self.pool, shard, rows=wanted):
            if isinstance(sample, RawSample):
                images.append(self._pixels(sample))
            if len(images) == _BATCH:
                yield _pairs(table.slice(start, _BATCH), images)
                start, images = start + _BATCH, []
        if start + len(images) != len(wanted):
            got = f"got {start + len(images)}: run again once it is back"
            raise InputError(f"shard {shard.name} must still hold the {len(wanted)} rows that were read from it, {got}")
        if images:
            yield _pairs(table.slice(start), images)

    def _pixels(self, sample: RawSample) -> NDArray[np.uint8]:
        image = decode(sample.image, max_pixels=self.pool.max_pixels).image
        return np.asarray(ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC))

    @property
    def _none(self) -> Pairs:
        none = np.empty(0, dtype=np.uint64)
        return Pairs(none, none, np.empty((0, self.size, self.size, 3), dtype=np.uint8), [])


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Some pairs in one, in the order of their uids: the same whatever shards they came from.

    Of all images there is one copy besides the parts, never two.
    """
    high_N, low_N = (np.concatenate([getattr(part, name) for part in parts]) for name in ("high_N", "low_N"))
    captions = [caption for part in parts for caption in part.captions]
    order_N = np.lexsort((low_N, high_N))
    place_N = np.empty(len(order_N), np.int64)
    place_N[order_N] = np.arange(len(order_N))
    pixels_NHWC = np.empty((len(order_N), *parts[0].pixels_NHWC.shape[1:]), np.uint8)
    start = 0
    for part in parts:
        pixels_NHWC[place_N[start : start + len(part)]] = part.pixels_NHWC
        start += len(part)
    return Pairs(high_N[order_N], low_N[order_N], pixels_NHWC, [captions[i] for i in order_N.tolist()])


def _pairs(table: pa.Table, images: list[NDArray[np.uint8]]) -> Pairs:
    return Pairs(*split_uids(uid_rows(table["uid"])), np.stack(images), table["caption"].to_pylist())
