"""Bytes from anywhere: files that may be gzipped, and many small files at once."""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from pipeline.remote import retry
from pipeline.resuming import open_file

_GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_unzipped(url: str, storage: Mapping[str, Any], *, read_ahead: bool = True) -> Iterator[BinaryIO]:
    """Opens a file that may be gzipped, which its first two bytes tell; positions count decompressed bytes."""
    with open_file(url, storage, read_ahead=read_ahead) as file:
        magic = file.read(len(_GZIP_MAGIC))
        file.seek(0)
        if magic == _GZIP_MAGIC:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=cast(BinaryIO, file), mode="rb"))
        else:
            yield cast(BinaryIO, file)


def read_files(fs: Any, paths: Sequence[str], max_bytes: int) -> list[bytes | None]:
    """Whole small files, fetched side by side where the store allows it.

    Args:
        fs: an fsspec file system.
        paths: paths of `fs`, without protocol.
        max_bytes: a file is read up to one byte more than this, so that a longer one shows.

    Returns:
        One entry a path, in order; None where there is no such file.
    """
    ends = [max_bytes + 1] * len(paths)
    found = fs.cat_ranges(list(paths), [0] * len(paths), ends, on_error="return") if paths else []
    return [_settle(fs, path, max_bytes, result) for path, result in zip(paths, found, strict=True)]


def _settle(fs: Any, path: str, max_bytes: int, result: bytes | Exception) -> bytes | None:
    if isinstance(result, bytes):
        return result
    if isinstance(result, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return None
    try:
        # S3 refuses any range of an empty object, so ask first.
        return retry(lambda: cast(bytes, fs.cat_file(path, 0, max_bytes + 1)) if fs.size(path) else b"")
    except FileNotFoundError:
        return None
