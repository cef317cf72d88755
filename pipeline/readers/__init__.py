"""Reading shards: one door for all formats.

Bad input costs one sample and never goes unnoticed: every row is yielded, the rejected ones with a reason, and the last
thing yielded says how the shard ended. A store that keeps failing raises its own error instead: an outage is no damage.
"""

import gzip
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator

from fsspec.implementations.local import LocalFileSystem

from operators.errors import InputError
from operators.rejects import Damage
from pipeline.pool import EMBEDDING_FORMATS, Format, Pool, Shard, Source
from pipeline.readers import idx, images, parquet, stored, webdataset
from pipeline.readers.sample import RawSample, ShardDamagedError, ShardEnd
from pipeline.remote import open_location

__all__ = ["RawSample", "ShardEnd", "check_shard", "read_image", "read_shard"]

Rows = frozenset[int] | None
_READERS: dict[Format, Callable[[Pool, Shard, Rows, bool], Iterator[RawSample]]] = {
    "webdataset": webdataset.read_webdataset,
    "parquet": parquet.read_parquet,
    "images": images.read_images,
    "idx": idx.read_idx,
}
_IMAGE_READERS: dict[Format, Callable[[Pool, Shard, int, int, int], bytes | None]] = {
    "webdataset": webdataset.read_one,
    "parquet": parquet.read_one,
    "images": images.read_one,
    "idx": idx.read_one,
}
_CHECKS: dict[Format, Callable[[Source, Shard], None]] = {
    "webdataset": webdataset.check_webdataset,
    "parquet": parquet.check_parquet,
    "idx": idx.check_idx,
    **dict.fromkeys(EMBEDDING_FORMATS, stored.check_stored),
}

_BAD_ARCHIVE = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)
DAMAGE = (ShardDamagedError, FileNotFoundError, *_BAD_ARCHIVE)
"""What a damaged or missing shard raises when it is read, and a store that fails does not."""


def read_shard(
    pool: Pool,
    shard: Shard,
    *,
    rows: Collection[int] | None = None,
    members: bool = False,
    arrays: Collection[str] = (),
) -> Iterator[RawSample | ShardEnd]:
    """Yields the samples of a shard in order, rejected ones included, then exactly one `ShardEnd`.

    Args:
        pool: limits and sources.
        shard: one of `list_shards(pool)`.
        rows: yield these rows only (those beyond the end are ignored); the others are skipped, mostly unread, and
            reading stops after the last. Row numbers, keys and reasons are the same as in a full read.
        members: fill `RawSample.members` with the original bytes.
        arrays: of a pool of embeddings, the arrays to be read besides those of images, which always are.

    Raises:
        Exception: the store's own error when reading kept failing; the shard may be perfectly sound.
    """
    wanted = None if rows is None else frozenset(rows)
    last_row = None if wanted is None else max(wanted, default=-1)
    num_rows, damage, message = 0, None, ""
    try:
        if last_row != -1:
            source = pool.sources[shard.source]
            samples = (
                _READERS[source.format](pool, shard, wanted, members)
                if source.has_images
                else stored.read_stored(pool, shard, wanted, arrays)
            )
            for sample in samples:
                num_rows = sample.row + 1
                yield sample
                if sample.row == last_row:
                    break
    except ShardDamagedError as error:
        damage, message = error.damage, error.message
    except FileNotFoundError:
        damage, message = Damage.MISSING, "no such file"
    except _BAD_ARCHIVE as error:
        damage, message = Damage.TRUNCATED if num_rows else Damage.UNREADABLE, f"bad compressed data: {error}"
    except PermissionError as error:
        # A store may deny access for a while, and to everything; a local file denies it alone and for good.
        if not isinstance(open_location(shard.url, pool.sources[shard.source].storage)[0], LocalFileSystem):
            raise
        damage, message = Damage.UNREADABLE, str(error)
    yield ShardEnd(num_rows, damage, message)


def read_image(pool: Pool, shard: Shard, *, key: str, row: int, offset: int, nbytes: int) -> bytes:
    """One encoded image by what the samples table says of it, without reading the shard.

    Args:
        pool: limits and sources.
        shard: the sample's shard.
        key: the sample's key, for the error message.
        row: the sample's row.
        offset: `RawSample.offset`.
        nbytes: length of `RawSample.image`.

    Raises:
        InputError: the shard holds no such image any more.
    """
    rule = f"image {key!r} of shard {shard.name} must still have {nbytes} bytes"
    try:
        image = _IMAGE_READERS[pool.sources[shard.source].format](pool, shard, row, offset, nbytes)
    except DAMAGE as error:
        raise InputError(f"{rule}, got: {error}") from error
    if image is None or len(image) != nbytes:
        raise InputError(f"{rule}, got {'none' if image is None else len(image)}")
    return image


def check_shard(source: Source, shard: Shard) -> bool:
    """Checks that a shard can be what its source says. True when it could be judged, False when it is damaged.

    Raises:
        UserError: it cannot; the message says why.
    """
    try:
        check = _CHECKS.get(source.format)
        if check is not None:
            check(source, shard)
    except DAMAGE:
        return False
    return True
