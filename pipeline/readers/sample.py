"""What a reader yields: one raw sample, and how a shard ended. All readers speak these words.

Row and key are facts of the shard, so they are the same whoever reads it and however often.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.rejects import Damage, Reason
from operators.uids import parse_uid

PRECEDENCE = (
    Reason.UNSAFE_NAME,
    Reason.SPLIT_KEY,
    Reason.DUPLICATE_KEY,
    Reason.BAD_ROW,
    Reason.MEMBER_TOO_LARGE,
    Reason.MISSING_IMAGE,
    Reason.UNDECODABLE_IMAGE,
    Reason.BAD_JSON,
    Reason.BAD_TEXT_ENCODING,
    Reason.MISSING_TEXT,
)
"""A sample with several faults is rejected for the first of these. What was readable of it is kept."""

MAX_NESTING = 64
"""Levels of lists and mappings in metadata. Python's own limit, of a pickle as of JSON, is a thousand calls."""


@dataclass(slots=True)
class RawSample:
    """One sample as it lies in its shard, bytes undecoded.

    Attributes:
        row: position of the sample in its shard, from 0, rejects counted.
        key: the sample's name inside the shard; no two rows of a shard share one.
        image: the encoded image; empty when there is none or when it was rejected unread.
        ext: lower-case extension of the image without the dot (`jpg`), empty when there is no image.
        offset: where the image lies: byte offset in a tar or IDX file (after decompression, if any), row in a
            Parquet file, 0 for an image file.
        caption: the text, None when there is none.
        metadata: the user's own fields (the JSON member, the other Parquet columns, the folder label); JSON-able.
        uid: the supplied uid when it is valid, else None.
        uid_invalid: True when a uid was supplied and is not 32 hexadecimal digits.
        reason: why the sample is rejected, None when it is sound so far.
        members: lower-case file extension -> original bytes, filled only when asked for (export): every member of a
            webdataset sample in shard order, the image alone for the other formats.
        vectors: name of an array -> the sample's row of it, as stored; of pools of embeddings only.
    """

    row: int
    key: str
    image: bytes = b""
    ext: str = ""
    offset: int = 0
    caption: str | None = None
    metadata: Mapping[str, Any] | None = None
    uid: bytes | None = None
    uid_invalid: bool = False
    reason: Reason | None = None
    members: dict[str, bytes] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.floating]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """The last thing a reader yields: how many rows it saw, and the damage that stopped it, if any.

    Attributes:
        rows: one more than the last row that was yielded; 0 when none was. The number of rows when all were wanted.
        damage: why the shard could not be read to its end.
        message: what is wrong and where, for people.
    """

    rows: int
    damage: Damage | None = None
    message: str = ""


class ShardDamagedError(Exception):
    """Raised inside a reader to end its shard early; `read_shard` turns it into a `ShardEnd`."""

    def __init__(self, damage: Damage, message: str) -> None:
        super().__init__(damage, message)
        self.damage = damage
        self.message = message

    def __str__(self) -> str:
        return self.message


class KeyBook:
    """The keys seen in one shard, so that each row gets a key of its own, and with it a derived uid of its own."""

    def __init__(self) -> None:
        self._times_seen: dict[str, int] = {}

    def claim(self, key: str) -> tuple[str, bool]:
        """The key to use for a row that calls itself `key`, and whether this is the first row to do so.

        The second row named `a` becomes `a.2`: a webdataset key has no dot in its last part, so no other row has it.
        """
        times = self._times_seen.get(key, 0) + 1
        self._times_seen[key] = times
        if times == 1:
            return key, True
        unique, _ = self.claim(f"{key}.{times}")
        return unique, False


def supplied_uid(value: object) -> tuple[bytes | None, bool]:
    """The 16 bytes of a sample's own uid field, and whether it is one that must be counted as invalid."""
    uid = parse_uid(value)
    return uid, uid is None and value is not None


def judge_image(image: bytes | None, max_bytes: int) -> Reason | None:
    """What is wrong with an encoded image, as far as its length tells."""
    if image is None:
        return Reason.MISSING_IMAGE
    if not image:
        return Reason.UNDECODABLE_IMAGE
    return Reason.MEMBER_TOO_LARGE if len(image) > max_bytes else None


def first_fault(faults: Collection[Reason | None]) -> Reason | None:
    """The one reason under which a sample with these faults is rejected; None counts as no fault."""
    return next((reason for reason in PRECEDENCE if reason in faults), None) if faults else None
