"""Webdataset shards: the members of a tar, grouped into samples.

A sample is a run of adjacent members with the same key: the name up to the first dot of its last path part. So
`a/b/0001.jpg` and `a/b/0001.txt` are one sample with the key `a/b/0001`, and `0001.mask.png` is a member of `0001`
whose extension, `mask.png`, is not an image's. Of several images in a sample the first is the image. Folders and hidden
files (`.DS_Store`, `._0001.jpg`) are no members, as in webdataset itself; a leading `./` is no part of a name.

A run that a cut ends is not yielded, even when the cut falls between two members: more of it may have followed.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from operators.errors import ConfigError
from operators.rejects import Reason
from pipeline.pool import IMAGE_EXTENSIONS, Pool, Shard, Source
from pipeline.readers.sample import MAX_NESTING, KeyBook, RawSample, first_fault, supplied_uid
from pipeline.readers.stream import open_unzipped
from pipeline.readers.tar import Entry, TarReader

_UNSAFE = re.compile(r"\Z|[/\\]|[A-Za-z]:|.*\0|(.*[/\\])?\.\.([/\\]|\Z)", re.DOTALL)
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Member = tuple[str, str, Entry]
"""Key, lower-case extension, header."""


def read_webdataset(pool: Pool, shard: Shard, rows: frozenset[int] | None, members: bool) -> Iterator[RawSample]:
    """Yields the samples of a tar, or of those `rows` only; see `pipeline.readers.read_shard`."""
    source = pool.sources[shard.source]
    keys = KeyBook()
    with open_unzipped(shard.url, source.storage) as stream:
        tar = TarReader(stream)
        for row, (key, run) in enumerate(groupby(_members(tar), key=itemgetter(0))):
            key, is_new = keys.claim(key)
            if rows is not None and row not in rows:
                continue
            parts = _gather(tar, run, pool.max_member_bytes, members)
            if not is_new:
                parts.faults.add(Reason.SPLIT_KEY)
            yield _compose(row, key, parts, source)


def _members(tar: TarReader) -> Iterator[Member]:
    for entry in tar:
        name = entry.name.removeprefix("./")
        folder, slash, base = name.rpartition("/")
        if base.startswith("."):
            if is_safe(name):
                continue
            yield name, "", entry
        else:
            stem, _, ext = base.partition(".")
            yield folder + slash + stem, ext.lower(), entry


def is_safe(name: str) -> bool:
    """False for a name that leads out of the folder it would be unpacked in, on any system, or to no file at all."""
    return _UNSAFE.match(name) is None


@dataclass(slots=True)
class _Parts:
    """What one run of members holds; None where it holds no such member, or none that may be read."""

    image: bytes = b""
    ext: str = ""
    offset: int = 0
    text: bytes | None = None
    json: bytes | None = None
    members: dict[str, bytes] = field(default_factory=dict)
    faults: set[Reason] = field(default_factory=set)


def _gather(tar: TarReader, run: Iterable[Member], max_bytes: int, keep_all: bool) -> _Parts:
    """Reads the members that matter; nothing unsafe, over-large, repeated or unneeded is read at all."""
    parts = _Parts()
    seen: set[str] = set()
    for _, ext, entry in run:
        fault = _fault_of(entry, ext in seen, max_bytes)
        seen.add(ext)
        if fault is not None:
            parts.faults.add(fault)
            continue
        is_image = ext in IMAGE_EXTENSIONS and not parts.ext
        if not (is_image or ext == "txt" or ext == "json" or keep_all):
            continue
        data = tar.read(entry)
        if is_image:
            parts.image, parts.ext, parts.offset = data, ext, entry.offset
        elif ext == "txt":
            parts.text = data
        elif ext == "json":
            parts.json = data
        if keep_all:
            parts.members[ext] = data
    return parts


def _fault_of(entry: Entry, is_repeated: bool, max_bytes: int) -> Reason | None:
    if not entry.is_file or not is_safe(entry.name):
        return Reason.UNSAFE_NAME
    if is_repeated:
        return Reason.DUPLICATE_KEY
    if entry.size > max_bytes:
        return Reason.MEMBER_TOO_LARGE
    return None


def _compose(row: int, key: str, parts: _Parts, source: Source) -> RawSample:
    faults = parts.faults
    if not parts.image:
        faults.add(Reason.UNDECODABLE_IMAGE if parts.ext else Reason.MISSING_IMAGE)
    metadata = None
    if parts.json is not None:
        metadata = parse_json(parts.json)
        if metadata is None:
            faults.add(Reason.BAD_JSON)
    caption: str | None = None
    if parts.text is not None:
        try:
            caption = parts.text.decode().removeprefix("\ufeff")
        except UnicodeDecodeError:
            faults.add(Reason.BAD_TEXT_ENCODING)
    elif source.text_field and metadata is not None:
        value = metadata.get(source.text_field)
        caption = value if isinstance(value, str) else None
    if source.needs_text and not (caption and caption.strip()):
        faults.add(Reason.MISSING_TEXT)
    uid, uid_invalid = supplied_uid(metadata.get("uid")) if metadata is not None else (None, False)
    return RawSample(
        row=row,
        key=key,
        image=parts.image,
        ext=parts.ext,
        offset=parts.offset,
        caption=caption,
        metadata=metadata,
        uid=uid,
        uid_invalid=uid_invalid,
        reason=first_fault(faults),
        members=parts.members,
    )


def parse_json(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`, None when it is anything else or could not be stored as Unicode text again.

    None also where lists and objects are nested deeper than `MAX_NESTING`: no step could pass them on.

    NaN and the infinities, which Python writes and JSON does not have, become None.
    """
    try:
        text = data.decode().removeprefix("\ufeff")
        value = json.loads(text, parse_constant=lambda _: None)
        if _LONE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _is_deep(value, MAX_NESTING) else None


def _is_deep(value: Any, max_levels: int) -> bool:
    """Whether lists and objects are nested in more levels than that."""
    if not isinstance(value, (dict, list)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return max_levels == 0 or any(_is_deep(item, max_levels - 1) for item in items)


def read_one(pool: Pool, shard: Shard, row: int, offset: int, nbytes: int) -> bytes:
    """The image at a byte offset of the archive."""
    with open_unzipped(shard.url, pool.sources[shard.source].storage, read_ahead=False) as stream:
        stream.seek(offset)
        return stream.read(nbytes)


def check_webdataset(source: Source, shard: Shard) -> None:
    """Refuses a Parquet file.

    Raises:
        ConfigError: it is one.
    """
    with open_unzipped(shard.url, source.storage, read_ahead=False) as stream:
        if stream.read(4) == b"PAR1":
            raise ConfigError(f"pool format must be parquet for {shard.url}, got {source.format}")
