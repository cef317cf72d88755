"""A streaming tar parser: one pass forwards, bounded memory, nothing extracted, no damage unnoticed.

Reads old (v7), ustar, GNU (long names, base-256 numbers) and pax (path, size) archives, and archives laid end to end.
Python's `tarfile` takes a cut at a member boundary, or a zeroed header in the middle, for the end of the archive; this
parser asks for the end-of-archive marker that every writer leaves, and distrusts what follows one.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from operators.rejects import Damage
from pipeline.readers.sample import ShardDamagedError

BLOCK_BYTES = 512
RECORD_BYTES = 20 * BLOCK_BYTES
"""Writers pad an archive to this, so another one laid behind it begins at a multiple; after a hole nothing does."""
MAX_EXTENSION_BYTES = 1 << 20
"""Of a GNU long name or a pax header. Real ones are a few hundred bytes."""
MAX_SIZE_BYTES = 1 << 60

_ZEROS = bytes(BLOCK_BYTES)
_CHECKSUM = slice(148, 156)
_EXTENSIONS = b"LKxXg"  # GNU long name, GNU long link, pax, Solaris pax, pax for all that follow
_DATALESS = b"123456"  # links, devices, folders, pipes: their size field means nothing
_SPECIAL = b"12346SM"  # links, devices, pipes, and the halves of sparse and multi-volume files
_IGNORED = b"5VDN"  # folders, volume labels, folder dumps


class Entry(NamedTuple):
    r"""One member's header.

    Attributes:
        name: as written; bytes that are not UTF-8 appear as `\xff`.
        offset: byte position of the data in the archive.
        size: bytes of data.
        is_file: False for links, devices and other things that are never followed.
    """

    name: str
    offset: int
    size: int
    is_file: bool


class TarReader:
    """Walks an archive. Iterate for headers; `read` gives the data of the entry just met, the rest is skipped.

    Iterating raises `ShardDamagedError`: `unreadable` when not even the first header is sound, else `truncated`. What
    was yielded before it is sound, but nobody can know whether more members of the last sample were to come.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yields files, links and devices; folders and labels are passed over."""
        start, ended = 0, False
        extension: dict[bytes, bytes] = {}
        while len(block := self._take(start, BLOCK_BYTES)) == BLOCK_BYTES:
            if block == _ZEROS:
                start, ended = start + BLOCK_BYTES, True
                continue
            if ended and start % RECORD_BYTES:
                raise _damaged(start, f"members at byte {start} follow an end-of-archive marker")
            ended = False
            kind, size = self._parse_fixed(block, start)
            offset = start + BLOCK_BYTES
            if kind in _EXTENSIONS:
                extension |= self._read_extension(kind, start, size)
                start = offset + _padded(size)
                continue
            if kind in _DATALESS:
                size = 0
            elif b"size" in extension:
                size = self._parse_size(extension[b"size"], start)
            if kind == b"S":
                offset = self._pass_sparse_map(block, offset)
            name = (extension.get(b"path") or _parse_name(block)).decode("utf-8", "backslashreplace")
            sparse = any(field.startswith(b"GNU.sparse.") for field in extension)
            extension = {}
            if kind not in _IGNORED and not (name.endswith("/") and kind not in _SPECIAL):
                yield Entry(name, offset, size, is_file=kind not in _SPECIAL and not sparse)
            start = offset + _padded(size)
        if not ended or block.strip(b"\0"):
            raise _damaged(start, f"ends at byte {self._position} without an end-of-archive marker")

    def read(self, entry: Entry) -> bytes:
        """The data of the entry that iteration has just yielded."""
        data = self._take(entry.offset, entry.size)
        if len(data) < entry.size:
            raise _damaged(entry.offset, f"ends at byte {self._position}, inside {entry.name!r}")
        return data

    def _take(self, position: int, size: int) -> bytes:
        if position != self._position:
            self._position = self._stream.seek(position)
        data = self._stream.read(size)
        self._position += len(data)
        return data

    def _parse_fixed(self, block: bytes, start: int) -> tuple[bytes, int]:
        """The type and the size field of a header whose checksum is right."""
        try:
            stored, size = _parse_number(block[_CHECKSUM]), _parse_number(block[124:136])
        except ValueError:
            raise _damaged(start, f"bad header at byte {start}") from None
        if not _sums_to(block, stored) or not 0 <= size <= MAX_SIZE_BYTES:
            raise _damaged(start, f"bad header at byte {start}")
        return block[156:157], size

    def _parse_size(self, text: bytes, start: int) -> int:
        if not text.isdigit() or len(text) > 18:
            raise _damaged(start, f"bad size in the pax header before byte {start}")
        return int(text)

    def _read_extension(self, kind: bytes, start: int, size: int) -> dict[bytes, bytes]:
        """What a GNU or pax extension says of the next member, under pax's names. Global ones are passed over."""
        if size > MAX_EXTENSION_BYTES:
            raise _damaged(start, f"bad header at byte {start}: an extension of {size} bytes")
        data = self._take(start + BLOCK_BYTES, size)
        if len(data) < size:
            raise _damaged(start, f"ends at byte {self._position}, inside an extension")
        if kind == b"L":
            return {b"path": data.partition(b"\0")[0]}
        if kind in b"Kg":
            return {}
        try:
            return _parse_pax(data)
        except ValueError:
            raise _damaged(start, f"bad pax header at byte {start}") from None

    def _pass_sparse_map(self, block: bytes, offset: int) -> int:
        more = block[482:483]
        while more.strip(b"\0"):
            more = self._take(offset, BLOCK_BYTES)[504:505]
            offset += BLOCK_BYTES
        return offset


def _damaged(position: int, message: str) -> ShardDamagedError:
    return ShardDamagedError(Damage.TRUNCATED if position else Damage.UNREADABLE, message)


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _parse_name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:  # GNU writes "ustar " and keeps times where POSIX has the prefix
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _parse_number(field: bytes) -> int:
    """An octal number, or base-256 when the first bit is set (files over 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _sums_to(block: bytes, stored: int) -> bool:
    total = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    if total == stored:
        return True
    # Some old writers summed signed bytes.
    negative = sum(byte >= 0x80 for byte in block) - sum(byte >= 0x80 for byte in block[_CHECKSUM])
    return total - 256 * negative == stored


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records of the form `length key=value newline`, the length counting itself."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data) and data[start]:
        space = data.index(b" ", start, start + 20)
        end = start + int(data[start:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise ValueError("a pax record must be 'length key=value'")
        records[key] = value
        start = end
    return records
