"""What tells a whole file of a workspace from a damaged one, at the moment it is used.

    JSON        begins with a seal: a digest of all that follows it
    Parquet     has a checksum for each page; a part's name also holds one of its footer
    .npz        has those of its zip members
    others      have a SHA-256 in the JSON that refers to them

Whatever is found wrong is one error, a `DamagedError` that names the file. `pipeline.quarantine` moves such files away.
"""

import contextlib
import errno
import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import DamagedError
from pipeline.remote import error_code
from pipeline.storage import Store, to_json

Hook = Callable[[dict[str, Any]], Any]

_SEAL = re.compile(rb'\{\n "seal": "([0-9a-f]{16})",')
_FOOTER_END = struct.Struct("<I4s")
_FOOTER_NAME = re.compile(r"-([0-9a-f]{8})\.parquet$")
_TAIL_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 22

_BROKEN = (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowIndexError)
_BROKEN_TOO = (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, struct.error)


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file must be: its size in bytes and the SHA-256 of them."""

    size: int
    sha256: str


def damaged(store: Store, path: str, got: object) -> DamagedError:
    """The error of a file that is not what was written."""
    words = " ".join(str(got).split())
    repair = f"`winnow verify {store.url} --repair` moves it away, and the next run makes it again"
    return DamagedError(f"{path} must be what was written into {store.url}, got {words}: {repair}")


def damaged_file(store: Store, error: DamagedError) -> str | None:
    """The path that an error is about, None where that is not in this workspace."""
    path, _, rest = str(error).partition(" ")
    return path if rest.startswith(f"must be what was written into {store.url}, ") else None


def what_is_wrong(error: DamagedError) -> str:
    """What was found, without the advice."""
    return str(error).partition(", got ")[2].rpartition(": `winnow verify ")[0]


@contextlib.contextmanager
def reading(store: Store, path: str) -> Iterator[None]:
    """Around the reading and parsing of one file: what its content leads to becomes a DamagedError.

    A store that fails, a closed door or a lack of memory keeps its own error: the file may be perfectly sound.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(store, path, "no such file") from error
    except OSError as error:
        failed = isinstance(error, ConnectionError | TimeoutError | PermissionError) or error_code(error) is not None
        # None is what a parser says of what it reads. What these say of a disk, s3fs says of a request.
        if failed or not (error.errno is None or (store.is_local and error.errno in (errno.EIO, errno.EINVAL))):
            raise
        raise damaged(store, path, f"{type(error).__name__}: {error}") from error
    except (*_BROKEN, *_BROKEN_TOO) as error:
        raise damaged(store, path, f"{type(error).__name__}: {error}") from error


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON that begins with its seal; sorted keys, so equal records give equal bytes."""
    body = to_json(record)
    return b'{\n "seal": "' + _seal(body) + b'",' + body[1:]


def unseal(data: bytes, hook: Hook | None = None) -> Any:
    """The record in the bytes of `sealed`. JSON without a seal, of an older version, is taken as it is.

    Args:
        data: the bytes.
        hook: `json`'s `object_hook`.

    Raises:
        ValueError: it is no JSON, or not what was sealed.
    """
    is_sealed, text = _check_seal(data), data.decode()
    del data  # of a hundred thousand parts it is large
    record = json.loads(text, object_hook=hook)
    if is_sealed:
        del record["seal"]
    return record


def read_sealed(store: Store, path: str, hook: Hook | None = None) -> Any:
    """The record of a sealed file.

    Args:
        store: the workspace.
        path: of the file.
        hook: `json`'s `object_hook`.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: it is not what was written.
    """
    data = [store.read(path)]
    with reading(store, path):
        return unseal(data.pop(), hook)  # it may be large, and is not held here while it is parsed


def read_arrays(store: Store, path: str) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz`. Raises DamagedError."""
    with reading(store, path), np.load(io.BytesIO(store.read(path)), allow_pickle=False) as arrays:
        return dict(arrays)


def checksum(store: Store, path: str) -> Checksum:
    """Size and SHA-256 of a file. Raises FileNotFoundError."""
    sha256, size = hashlib.sha256(), 0
    with store.open(path) as file:
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
            size += len(block)
    return Checksum(size, sha256.hexdigest())


def footer_checksum(file: BinaryIO) -> str:
    """CRC-32 of a Parquet file's footer, which no page's checksum covers: 8 hexadecimal digits."""
    return f"{zlib.crc32(_read_footer(file)):08x}"


def read_parquet(file: BinaryIO, path: str, columns: list[str] | None = None) -> pa.Table:
    """Some columns of a Parquet file in the order asked for, or all, their pages and its footer checked.

    Raises:
        Exception: of any kind, where it is damaged; see `reading`.
    """
    whole = read_footer(file, path)
    with pq.ParquetFile(file, metadata=whole, page_checksum_verification=True) as table:
        read = table.read(columns, use_threads=False)
    return read if columns is None else read.select(columns)


def read_footer(file: BinaryIO, path: str) -> pq.FileMetaData:
    """The footer of a Parquet file, checked against what the file's name says of it; raises as `read_parquet` does."""
    footer = _read_footer(file)
    match = _FOOTER_NAME.search(path)
    if match and f"{zlib.crc32(footer):08x}" != match[1]:
        raise ValueError("a footer that is not the one written")
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer))


def _read_footer(file: BinaryIO) -> bytes:
    """The footer with its length and the final magic. Raises ValueError."""
    size = file.seek(0, io.SEEK_END)
    start = file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    if len(tail) < _FOOTER_END.size or not tail.endswith(b"PAR1"):
        raise ValueError(f"{size} bytes that do not end as Parquet does")
    length = _FOOTER_END.unpack(tail[-_FOOTER_END.size :])[0] + _FOOTER_END.size
    if length > size:
        raise ValueError(f"{size} bytes that end with a footer of {length}")
    if length > len(tail):
        file.seek(size - length)
        tail = file.read(length - (size - start)) + tail
    return tail[-length:]


def _check_seal(data: bytes) -> bool:
    """Whether bytes begin with a seal. Raises ValueError where it is not theirs."""
    match = _SEAL.match(data)
    if match and (own := _seal(b"{", memoryview(data)[match.end() :])) != match[1]:
        raise ValueError(f"a content whose digest is {own.decode()}, not {match[1].decode()}")
    return match is not None


def _seal(*body: bytes | memoryview) -> bytes:
    hasher = hashlib.blake2b(digest_size=8)
    for piece in body:
        hasher.update(piece)
    return hasher.hexdigest().encode()
