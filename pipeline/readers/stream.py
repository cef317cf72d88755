"""Bytes from anywhere: files that survive a broken connection, byte ranges, many small files at once.

This is the one place where reading retries. A store that keeps failing raises its own error: it is never mistaken for
a damaged shard, because damage is published and lasts, and an outage does not.
"""

import gzip
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.1
LOCAL_BUFFER_BYTES = 1 << 18
REMOTE_BLOCK_BYTES = 8 << 20
_GZIP_MAGIC = b"\x1f\x8b"


def retry(action: Callable[[], T]) -> T:
    """Calls `action` until it succeeds, at most `ATTEMPTS` times with doubling pauses.

    Every kind of error is tried again but a missing file: each store brings its own tree (botocore, aiohttp, OSError),
    and under load S3 even answers "access denied" to the entitled.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception:
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    return action()


class ResumingFile(io.RawIOBase):
    """A file open for reading that is opened anew, at the byte where it stopped, when a read fails.

    Attributes:
        failed: True once the store gave up for good, so that a caller can tell an outage from damaged content.
    """

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        super().__init__()
        self._open_file = open_file
        self._file: BinaryIO | None = None
        self._position = 0
        self.failed = False

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end of the file; all that is left for -1."""
        try:
            data = retry(lambda: self._read_once(size))
        except Exception:
            self.failed = True
            raise
        self._position += len(data)
        return data

    def _read_once(self, size: int) -> bytes:
        try:
            return self._open().read(size)
        except Exception:
            self._drop()
            raise

    def _open(self) -> BinaryIO:
        if self._file is None:
            file = self._open_file()
            file.seek(self._position)
            self._file = file
        return self._file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a byte; nothing is read, so a position past the end shows only in the next read."""
        self._position = retry(self._open).seek(offset, whence)
        return self._position

    def tell(self) -> int:
        """The position of the next byte to be read."""
        return self._position

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        """Closes the file beneath."""
        self._drop()
        super().close()


def open_file(url: str, storage: Mapping[str, Any], *, read_ahead: bool = True) -> ResumingFile:
    """Opens a local or remote file for reading. Nothing is touched before the first read or seek.

    Args:
        url: a local path, or whatever fsspec opens.
        storage: options for fsspec.
        read_ahead: of a remote file, fetch large blocks ahead (good forwards, wasteful when hopping about).
    """
    fs, path = fsspec.core.url_to_fs(url, **storage)
    if isinstance(fs, LocalFileSystem):
        return ResumingFile(lambda: open(path, "rb", buffering=LOCAL_BUFFER_BYTES))
    options = {"block_size": REMOTE_BLOCK_BYTES, "cache_type": "readahead"} if read_ahead else {"cache_type": "none"}
    return ResumingFile(lambda: cast(BinaryIO, fs.open(path, "rb", **options)))


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
