"""The ways in which a sample of a synthetic pool is broken, each with the reason that a reader must reject it for.

A fault is a pure function from the parts of a sound sample to the members that go into the tar in their place.
"""

import codecs
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from operators.rejects import Reason

GENERATED_MEMBER_LIMIT = 1 << 20
"""Set `pool.max_member_bytes` to this for a generated pool: its oversized members are half as large again, no more."""

_BOMB_SIDE = 30_000

Parts = Mapping[str, bytes]
"""File extension -> bytes of one sample: `jpg`, `json`, `txt`."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar; a symbolic link when `link` names its target."""

    name: str
    data: bytes
    link: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break a sample, or to make it look odd.

    Attributes:
        expected: the reject reason, or `ok` for what looks odd and is sound.
        apply: (key, parts) -> members; the parts' image is a JPEG.
        brings_uid: whether the sample's JSON holds a uid that a reader can be expected to find.
        prefix: what the names of the members, and so the sample's key, begin with.
    """

    expected: str
    apply: Callable[[str, Parts], list[Member]]
    brings_uid: bool = False
    prefix: str = ""


def pack(key: str, parts: Parts) -> list[Member]:
    """The members of a sound sample, in the order in which webdataset's own writer puts them: by extension."""
    return [Member(f"{key}.{ext}", parts[ext]) for ext in sorted(parts)]


def _without(ext: str) -> Callable[[str, Parts], list[Member]]:
    return lambda key, parts: pack(key, {name: data for name, data in parts.items() if name != ext})


def _changed(ext: str, change: Callable[[bytes], bytes]) -> Callable[[str, Parts], list[Member]]:
    return lambda key, parts: pack(key, {**parts, ext: change(parts[ext])})


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _oversized(data: bytes) -> bytes:
    """Decoders ignore what follows an image's end, so that only its size is wrong."""
    return data + bytes(GENERATED_MEMBER_LIMIT * 3 // 2 - len(data))


def _utf16(data: bytes) -> bytes:
    """The byte order mark is what makes it invalid as UTF-8."""
    return codecs.BOM_UTF16_LE + data.decode().encode("utf-16-le")


def _text_as_image(key: str, parts: Parts) -> list[Member]:
    return pack(key, {**parts, "jpg": parts["txt"]})


def _pixel_bomb(key: str, parts: Parts) -> list[Member]:
    """A PNG of a hundred bytes whose header asks for 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", _BOMB_SIDE, _BOMB_SIDE, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )
    return pack(key, {"png": bomb, "json": parts["json"], "txt": parts["txt"]})


def _repeated_extension(key: str, parts: Parts) -> list[Member]:
    members = pack(key, parts)
    return [*members, members[0]]


def _symlink(key: str, parts: Parts) -> list[Member]:
    return [Member(f"{key}.jpg", b"", link="../../outside.jpg"), *_without("jpg")(key, parts)]


def _upper_case(key: str, parts: Parts) -> list[Member]:
    return [Member(f"{key}.{ext.upper()}", parts[ext]) for ext in sorted(parts)]


FAULTS: dict[str, Fault] = {
    "no_image": Fault(Reason.MISSING_IMAGE, _without("jpg"), brings_uid=True),
    "no_text": Fault(Reason.MISSING_TEXT, _without("txt"), brings_uid=True),
    "truncated_image": Fault(Reason.UNDECODABLE_IMAGE, _changed("jpg", _half), brings_uid=True),
    "empty_image": Fault(Reason.UNDECODABLE_IMAGE, _changed("jpg", lambda _: b""), brings_uid=True),
    "text_as_image": Fault(Reason.UNDECODABLE_IMAGE, _text_as_image, brings_uid=True),
    "pixel_bomb": Fault(Reason.IMAGE_TOO_LARGE, _pixel_bomb, brings_uid=True),
    "oversized_member": Fault(Reason.MEMBER_TOO_LARGE, _changed("jpg", _oversized)),
    "truncated_json": Fault(Reason.BAD_JSON, _changed("json", _half)),
    "utf16_text": Fault(Reason.BAD_TEXT_ENCODING, _changed("txt", _utf16)),
    "repeated_extension": Fault(Reason.DUPLICATE_KEY, _repeated_extension),
    "returning_key": Fault(Reason.SPLIT_KEY, pack),
    "parent_path": Fault(Reason.UNSAFE_NAME, pack, prefix="../"),
    "absolute_path": Fault(Reason.UNSAFE_NAME, pack, prefix="/"),
    "symlink": Fault(Reason.UNSAFE_NAME, _symlink),
    "repeated_uid": Fault(Reason.DUPLICATE_UID, pack, brings_uid=True),
    "invalid_uid": Fault("ok", pack),
    "upper_case_extension": Fault("ok", _upper_case, brings_uid=True),
    "dotted_folder": Fault("ok", pack, brings_uid=True, prefix="v1.0/"),
}
"""Name -> fault. `returning_key` and `repeated_uid` are faulty by the key and the uid that the plan gives them."""
