"""Tar members whose bytes depend on nothing but their names and contents.

Every member belongs to nobody, has mode 644 and the time 0. The headers are plain ustar; a name that ustar cannot hold
gets a pax header before it.
"""

import tarfile

from pipeline.readers.tar import BLOCK_BYTES

END = bytes(2 * BLOCK_BYTES)
"""What an archive ends with."""


def pack_member(name: str, data: bytes) -> bytes:
    """Header, content and padding of one file."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return b"".join((header, data, bytes(-len(data) % BLOCK_BYTES)))


def packed_bytes(size: int) -> int:
    """The length of a packed member with `size` bytes of content and a short name."""
    return BLOCK_BYTES + size + -size % BLOCK_BYTES
