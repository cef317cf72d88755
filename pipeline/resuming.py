"""Files that survive a broken connection.

A store that keeps failing raises its own error: it is never mistaken for a damaged shard, because damage is published
and lasts, and an outage does not. A file that is another one when it is opened anew is an error, never a mixture.
"""

import io
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from operators.errors import InputChanged
from pipeline.remote import is_s3, open_location, retry, version_of

T = TypeVar("T")

LOCAL_BUFFER_BYTES = 1 << 18
REMOTE_BLOCK_BYTES = 8 << 20


class ResumingFile(io.RawIOBase):
    """A file open for reading that is opened anew, at the byte where it stopped, when a read fails.

    Attributes:
        failed: True once the store gave up for good, so that a caller can tell an outage from damaged content.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], url: str = "a file") -> None:
        super().__init__()
        self._open_file = open_file
        self._url = url
        self._file: BinaryIO | None = None
        self._version: tuple[Any, ...] | None = None
        self._position = 0
        self.failed = False

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end of the file; all that is left for -1.

        Raises:
            InputChanged: the file was replaced since it was opened first.
            Exception: the store's own error, when reading kept failing.
        """
        data = self._settle(lambda: self._read_once(size))
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer; returns how many bytes there were for it."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _settle(self, action: Callable[[], T]) -> T:
        try:
            return retry(action)
        except Exception:
            self.failed = True
            raise

    def _read_once(self, size: int) -> bytes:
        try:
            return self._open().read(size)
        except Exception:
            self._drop()
            raise

    def _open(self) -> BinaryIO:
        if self._file is None:
            file = self._open_file()
            version = _version(file)
            if self._version not in (None, version):
                file.close()
                raise InputChanged(f"{self._url} must stay as it is while it is read, got another version: run again")
            file.seek(self._position)
            self._file, self._version = file, version
        return self._file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a byte; nothing is read, so a position past the end shows only in the next read."""
        self._position = self._settle(self._open).seek(offset, whence)
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
    fs, path = open_location(url, storage)
    return resuming(fs, path, url, read_ahead=read_ahead)


def resuming(fs: Any, path: str, url: str, *, read_ahead: bool = True) -> ResumingFile:
    """`open_file` for a path of a file system that is open; `url` is what to call it."""
    if isinstance(fs, LocalFileSystem):
        return ResumingFile(lambda: open(path, "rb", buffering=LOCAL_BUFFER_BYTES), url)
    options = {"block_size": REMOTE_BLOCK_BYTES, "cache_type": "readahead"} if read_ahead else {"cache_type": "none"}
    if is_s3(fs):
        from pipeline.s3_file import SteadyFile  # imports s3fs, which is slow

        return ResumingFile(lambda: cast(BinaryIO, SteadyFile(fs, path, **options)), url)
    return ResumingFile(lambda: cast(BinaryIO, fs.open(path, "rb", **options)), url)


def _version(file: Any) -> tuple[Any, ...]:
    """What tells one version of an open file from another, as far as its file system knows."""
    if isinstance(file, io.BufferedReader):
        stat = os.fstat(file.fileno())
        return (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    details = getattr(file, "details", None)
    return (details.get("size"), version_of(details)) if isinstance(details, Mapping) else ()
