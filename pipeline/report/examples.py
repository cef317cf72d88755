"""The samples that a report shows: their captions, the numbers of every step, and thumbnails.

Runs in Ray tasks, one for each shard that holds a chosen row. What cannot be read or decoded is shown without an image.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from operators.errors import WinnowError
from operators.images import decode
from operators.rejects import Reason
from pipeline.artifact import read_columns
from pipeline.pool import Pool, Shard
from pipeline.readers import read_image
from pipeline.report.scan import Choice, Unit
from pipeline.spread import spread
from pipeline.storage import Store

THUMBNAIL_SIDE = 128
_QUALITY = 72
_CAPTION_LENGTH = 300
_COLUMNS = ["uid", "key", "offset", "bytes", "width", "height", "caption", "reason"]
_UNTOUCHED = {Reason.UNSAFE_NAME, Reason.MEMBER_TOO_LARGE, Reason.IMAGE_TOO_LARGE}
"""Rejects whose bytes are not even looked at again."""


@dataclass(frozen=True)
class Thumbnail:
    """A small image as a `data:` URI."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Found:
    """One chosen sample.

    Attributes:
        uid: 32 hexadecimal digits.
        shard, key: where it comes from.
        caption: cut where it is very long.
        size: (width, height) in pixels, None where the image could not be read.
        numbers: artifact name -> what it says of this row: a verdict's details, or a score.
        thumbnail: None where there is nothing to show.
    """

    uid: str
    shard: str
    key: str
    caption: str
    size: tuple[int, int] | None
    numbers: Mapping[str, Mapping[str, Any]]
    thumbnail: Thumbnail | None


@dataclass(frozen=True)
class Wanted:
    """The chosen rows of one shard, and the steps whose numbers about them are asked for."""

    unit: Unit
    shard: Shard
    rows: tuple[int, ...]
    artifacts: tuple[str, ...]


def find_examples(store: Store, pool: Pool, wanted: Sequence[Wanted], workers: int) -> dict[tuple[int, int], Found]:
    """The samples of all chosen rows, by (shard index, row)."""
    found: dict[tuple[int, int], Found] = {}
    for examples in spread(partial(read_examples, store, pool), wanted, workers=workers):
        found |= examples
    return found


def rows_by_shard(choices: Iterable[Choice]) -> dict[int, tuple[int, ...]]:
    """The rows to be read of each shard, in order."""
    rows: dict[int, set[int]] = {}
    for choice in choices:
        rows.setdefault(choice.shard, set()).add(choice.row)
    return {shard: tuple(sorted(rows[shard])) for shard in sorted(rows)}


def read_examples(store: Store, pool: Pool, wanted: Wanted) -> dict[tuple[int, int], Found]:
    """The chosen samples of one shard."""
    rows = list(wanted.rows)
    samples = read_columns(store, wanted.unit.paths["samples"], _COLUMNS).take(rows).to_pylist()
    numbers: list[dict[str, Mapping[str, Any]]] = [{} for _ in rows]
    for artifact in wanted.artifacts:
        table = read_columns(store, wanted.unit.paths[artifact]).take(rows)
        for facts, row in zip(numbers, table.to_pylist(), strict=True):
            if row.get("detail") is not None:
                facts[artifact] = row["detail"]
            elif row.get("score") is not None:
                facts[artifact] = {"score": row["score"]}
    return {
        (wanted.unit.index, row): _found(pool, wanted.shard, row, sample, facts)
        for row, sample, facts in zip(rows, samples, numbers, strict=True)
    }


def thumbnail(data: bytes, max_pixels: int) -> Thumbnail:
    """A small WebP of an encoded image. Raises UnusableImage."""
    image = decode(data, max_pixels=max_pixels, draft=(2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE)).image
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=_QUALITY, method=4)
    return Thumbnail("data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode(), *image.size)


def _found(pool: Pool, shard: Shard, row: int, sample: Mapping[str, Any], numbers: Mapping[str, Any]) -> Found:
    caption = sample["caption"] or ""
    return Found(
        uid=sample["uid"].hex(),
        shard=shard.name,
        key=sample["key"],
        caption=caption if len(caption) <= _CAPTION_LENGTH else caption[: _CAPTION_LENGTH - 1] + "…",
        size=None if sample["width"] is None else (sample["width"], sample["height"]),
        numbers=numbers,
        thumbnail=_read_thumbnail(pool, shard, row, sample),
    )


def _read_thumbnail(pool: Pool, shard: Shard, row: int, sample: Mapping[str, Any]) -> Thumbnail | None:
    nbytes = sample["bytes"] or 0
    if sample["reason"] in _UNTOUCHED or not 0 < nbytes <= pool.max_member_bytes:
        return None
    try:
        data = read_image(pool, shard, key=sample["key"], row=row, offset=sample["offset"] or 0, nbytes=nbytes)
        return thumbnail(data, pool.max_pixels)
    except (WinnowError, OSError):
        return None
