"""`deny`: drops samples that are on a list: opt-outs, withdrawn images, known bad URLs.

Reads `samples`. Verdict reasons: `denied_uid`, `denied_url`, `denied_image`; details: `match`, the entry that matched.
A list is a text file with one entry a line (blank lines and lines starting with `#` are skipped), or for uids also a
DataComp subset (`.npy`, dtype `u8,u8`). An image is named by the `image_hash` of `samples` (32 hexadecimal digits) or
by its SHA-256 (64), which is looked up in the metadata field `sha256`. A URL is compared with the field `url`.
"""

import functools
import hashlib
import io
import json
from functools import partial
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
from pydantic import model_validator

from operators.errors import InputError
from operators.uids import UID_PAIR, join_uids, parse_uid
from pipeline.artifact import Artifact
from pipeline.run import Read, Run, Verdicts
from pipeline.steps.base import Step


class Deny(Step):
    """Settings of the step: at least one list, a path or URL each.

    Attributes:
        uids: uids as text or as a DataComp subset.
        urls: URLs as text.
        image_hashes: image hashes as text.
    """

    step: Literal["deny"]
    uids: str | None = None
    urls: str | None = None
    image_hashes: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "Deny":
        if not (self.uids or self.urls or self.image_hashes):
            raise ValueError("needs at least one of uids, urls and image_hashes")
        return self

    def identity(self, run: Run) -> dict[str, Any]:
        """Covers the content of the lists, so that a longer list is a new step."""
        return super().identity(run) | {"content": [_content_hash(path) for path in self._paths()]}

    def check(self) -> None:
        """Reads the lists once, before any work. Raises InputError where one cannot be read."""
        if self.uids:
            read_uids(self.uids)
        for path in (self.urls, self.image_hashes):
            if path:
                read_lines(path)

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        columns = {name: name for name in ("uid", "image_hash", "metadata")}
        plan = run.plan(self.title, self.identity(run), [Read(run.samples, columns)])
        return plan.published or plan.map_verdicts(partial(judge, self))

    def _paths(self) -> list[str]:
        return [path for path in (self.uids, self.urls, self.image_hashes) if path]


def judge(settings: Deny, table: pa.Table) -> Verdicts:
    """Drops the rows that a list names; the uid list speaks first, then URLs, then images."""
    uids, urls, hashes = lists
    whys: list[str | None] = []
    matches: list[str | None] = []
    for uid, image_hash, metadata in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        fields = json.loads(metadata) if metadata else {}
        why, match = None, None
        if uid in uids:
            why, match = "denied_uid", uid.hex()
        elif fields.get("url") in urls:
            why, match = "denied_url", fields["url"]
        elif image_hash is not None and image_hash.hex() in hashes:
            why, match = "denied_image", image_hash.hex()
        elif fields.get("sha256") in hashes:
            why, match = "denied_image", fields["sha256"]
        whys.append(why)
        matches.append(match)
    kept_N = np.array([why is None for why in whys], dtype=bool)
    details = pa.StructArray.from_arrays([pa.array(matches, pa.string())], names=["match"])
    return Verdicts(kept_N, pa.array(whys, pa.string()), details)


@functools.cache
def read_lines(path: str) -> frozenset[str]:
    """The entries of a text list."""
    lines = _read(path).decode("utf-8-sig", errors="strict").splitlines()
    entries = (line.strip() for line in lines)
    return frozenset(entry for entry in entries if entry and not entry.startswith("#"))


@functools.cache
def read_uids(path: str) -> frozenset[bytes]:
    """The uids of a text list or of a DataComp subset file.

    Raises:
        InputError: it cannot be read, or an entry is not a uid.
    """
    if path.endswith(".npy"):
        pairs = np.load(io.BytesIO(_read(path)), allow_pickle=False)
        if pairs.dtype != UID_PAIR:
            raise InputError(f"{path} must hold dtype u8,u8, got {pairs.dtype}")
        data = join_uids(pairs["f0"], pairs["f1"])
        return frozenset(data[i : i + 16] for i in range(0, len(data), 16))
    uids = {line: parse_uid(line) for line in read_lines(path)}
    bad = sorted(line for line, uid in uids.items() if uid is None)
    if bad:
        raise InputError(f"{path} must list uids of 32 hexadecimal digits, got {bad[0]!r} ({len(bad)} such lines)")
    return frozenset(uid for uid in uids.values() if uid is not None)


def _content_hash(path: str) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: str) -> bytes:
    try:
        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    except OSError as error:
        raise InputError(f"{path} must be a readable list, got: {error.strerror or error}") from error
