"""Arrays in files, read block by block from any store: `.npy`, a member of an `.npz`, or a bare memory map.

Nothing is unpickled: an array of Python objects is refused by its header. A file that ends before its header says is
`truncated` at the first row that is not whole.

Legend: N rows, n rows of one block, D columns.
"""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from operators.errors import InputError
from operators.rejects import Damage
from pipeline.pool import Source
from pipeline.readers.sample import ShardDamagedError
from pipeline.remote import open_location, retry
from pipeline.resuming import open_file

MAX_ROW_BYTES = 1 << 20
"""So that a header cannot ask for more memory than a block of sound rows takes."""

_MAGIC = b"\x93NUMPY"
_KINDS = {"f": "floating-point numbers", "SU": "strings"}
_SEPARATOR = "#"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of an array lie in their stream.

    Attributes:
        rows: N.
        columns: D; 1 for an array with one axis.
        dtype: of its elements.
        offset: byte of the first row.
    """

    rows: int
    columns: int
    dtype: np.dtype[Any]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.dtype.itemsize


class ArrayStream:
    """An open array, read forwards."""

    def __init__(self, stream: BinaryIO, layout: Layout) -> None:
        """Takes a stream that stands where the first wanted row begins."""
        self._stream = stream
        self.layout = layout

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` rows, (n, D); fewer where the file ends too early."""
        size = count * self.layout.row_bytes
        data = bytearray()
        while len(data) < size and (piece := self._stream.read(size - len(data))):
            data += piece
        rows = len(data) // max(1, self.layout.row_bytes)
        flat = np.frombuffer(data, self.layout.dtype, rows * self.layout.columns)
        return cast("NDArray[Any]", flat.reshape(rows, self.layout.columns))


@contextmanager
def open_array(url: str, source: Source, *, kind: str = "f", start: int = 0) -> Iterator[ArrayStream]:
    """Opens an array for reading.

    Args:
        url: of a `.npy` or a memory map, or `<npz>#<name>` for one array of an `.npz`.
        source: says what a memory map is made of, and how to open the store.
        kind: `f` for numbers, `SU` for strings.
        start: the row to begin with.

    Raises:
        InputError: the array is not what it should be.
        ShardDamagedError: there is no whole header.
        FileNotFoundError: there is no such file, or no such array in it.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(_open_stream(url, source))
        layout = _read_layout(stream, url, source, kind)
        stream.seek(layout.offset + start * layout.row_bytes)
        yield ArrayStream(stream, layout)


def read_layout(url: str, source: Source, *, kind: str = "f") -> Layout:
    """Shape and type of an array. Raises as `open_array` does."""
    with _open_stream(url, source) as stream:
        return _read_layout(stream, url, source, kind)


def member_url(npz: str, name: str) -> str:
    """What `open_array` calls one array of an `.npz`."""
    return f"{npz}{_SEPARATOR}{name}"


def list_members(npz: str, source: Source) -> list[str]:
    """The names of the arrays in an `.npz`, sorted."""
    with _open_zip(npz, source) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def read_rows(url: str, source: Source, rows_n: NDArray[np.int64]) -> NDArray[Any]:
    """Single rows of an array that is no part of an `.npz`, (n, D), in the order given; each within the array.

    Raises:
        ShardDamagedError: the file ends before one of them.
    """
    layout = read_layout(url, source)
    fs, path = open_location(url, source.storage)
    if isinstance(fs, LocalFileSystem):
        whole = fs.size(path) >= layout.offset + layout.rows * layout.row_bytes
        if whole and layout.rows:
            map_ND = np.memmap(path, layout.dtype, "r", layout.offset, (layout.rows, layout.columns))
            return np.asarray(map_ND[rows_n])
    starts = (layout.offset + rows_n * layout.row_bytes).tolist()
    ends = [start + layout.row_bytes for start in starts]
    found = retry(lambda: fs.cat_ranges([path] * len(starts), starts, ends, on_error="raise")) if starts else []
    if any(len(row) < layout.row_bytes for row in found):
        raise ShardDamagedError(Damage.UNREADABLE, f"{url} ends before a row that the shard points to")
    return np.frombuffer(b"".join(found), layout.dtype).reshape(len(found), layout.columns)


@contextmanager
def _open_stream(url: str, source: Source) -> Iterator[BinaryIO]:
    npz, separator, name = url.rpartition(_SEPARATOR)
    if not (separator and npz.endswith(".npz")):
        with open_file(url, source.storage) as file:
            yield cast(BinaryIO, file)
        return
    with _open_zip(npz, source) as archive:
        try:
            member = archive.open(f"{name}.npy")
        except KeyError as error:
            raise FileNotFoundError(f"{npz} holds no array {name}") from error
        with member:
            yield cast(BinaryIO, member)


@contextmanager
def _open_zip(npz: str, source: Source) -> Iterator[zipfile.ZipFile]:
    with open_file(npz, source.storage) as file:
        file.seek(0)  # a missing file says so here; zipfile would call it no archive
        try:
            archive = zipfile.ZipFile(cast(BinaryIO, file))
        except zipfile.BadZipFile as error:
            raise ShardDamagedError(Damage.UNREADABLE, f"{npz} must be a zip archive: {error}") from error
        with archive:
            yield archive


def _read_layout(stream: BinaryIO, url: str, source: Source, kind: str) -> Layout:
    start = stream.read(len(_MAGIC))
    stream.seek(0)
    layout = _read_header(stream, url) if start == _MAGIC else _bare_layout(stream, url, source, kind)
    if layout.dtype.kind not in kind:
        reason = "; Python objects are never unpickled" if layout.dtype.hasobject else ""
        raise InputError(f"{url} must be an array of {_KINDS[kind]}, got dtype {layout.dtype}{reason}")
    if layout.rows < 0 or not 0 < layout.row_bytes <= MAX_ROW_BYTES:
        rule = f"{url} must have rows of 1 to {MAX_ROW_BYTES} bytes"
        raise InputError(f"{rule}, got {layout.rows} rows of {layout.row_bytes}")
    return layout


def _read_header(stream: BinaryIO, url: str) -> Layout:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except ValueError as error:
        raise ShardDamagedError(Damage.UNREADABLE, f"{url} must have the header of a .npy: {error}") from error
    if (is_fortran and len(shape) > 1) or not 1 <= len(shape) <= 2:
        order = "column" if is_fortran else "row"
        raise InputError(f"{url} must be an array of rows, got {order}-major order and shape {shape}")
    return Layout(shape[0], shape[1] if len(shape) == 2 else 1, dtype, stream.tell())


def _bare_layout(stream: BinaryIO, url: str, source: Source, kind: str) -> Layout:
    """Of a memory map: the config says what it is made of, its size how many rows there are."""
    if source.format != "semdedup":
        raise ShardDamagedError(Damage.UNREADABLE, f"{url} must have the header of a .npy, got none")
    key = "path_bytes" if kind == "SU" else "dim"
    width = source.path_bytes if kind == "SU" else source.dim
    if width is None:
        raise InputError(f"{key} must be given where an array is a bare memory map, got none for {url}")
    dtype = np.dtype(f"S{width}") if kind == "SU" else np.dtype(source.dtype).newbyteorder("<")
    columns = 1 if kind == "SU" else width
    size = stream.seek(0, 2)
    return Layout(size // (columns * dtype.itemsize), columns, dtype, 0)
