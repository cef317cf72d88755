"""`deny`: drops samples that are on a list: opt-outs, withdrawn images, known bad URLs.

Reads `samples`. Verdict reasons: `denied_uid`, `denied_url`, `denied_image`; details: `match`, the entry that matched.
A list is a text file with one entry a line (blank lines and lines starting with `#` are skipped), or for uids also a
DataComp subset (`.npy`, dtype `u8,u8`). An image is named by the `image_hash` of `samples` (32 hexadecimal digits) or
by its SHA-256 (64), which is looked up in the metadata field `sha256`. A URL is compared with the field `url`.
Hexadecimal digits match in any case; a line that can match nothing is an error, since a list protects somebody.

Night by night (`pipeline.given`), lists take effect the next night, whether or not there are new shards, and change no
other verdict. A row that was judged keeps its verdict here; the last step of a night, `<title>.again`, drops what the
lists name by now of all that is kept. What a denied row was before stays as it was: its duplicates stay dropped, and
its place in a quota is not filled. A row that comes off a list comes back only where it was kept before it was listed.
"""

import functools
import io
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from operators.errors import InputError
from operators.uids import UID_BYTES, UID_PAIR, join_uids, parse_uid
from pipeline.artifact import Artifact, publish_beside
from pipeline.integrity import read_sealed, sealed
from pipeline.paths import Storage, resolve
from pipeline.remote import read_whole
from pipeline.run import Read, Run
from pipeline.steps.base import Stands, Step
from pipeline.storage import Store, digest
from pipeline.units import Verdicts

_HASH = re.compile("(?:[0-9a-fA-F]{32}){1,2}")


class Deny(Step):
    """Settings of the step: at least one list, a path or URL each.

    Attributes:
        uids: uids as text or as a DataComp subset.
        urls: URLs as text.
        image_hashes: image hashes as text.
        storage: options for fsspec to open the lists. Default: those of a workspace in the same kind of store.
    """

    stands: ClassVar[Stands] = "always"

    step: Literal["deny"]
    uids: str | None = None
    urls: str | None = None
    image_hashes: str | None = None
    storage: Storage = None

    @model_validator(mode="after")
    def _check(self) -> "Deny":
        if not (self.uids or self.urls or self.image_hashes):
            raise ValueError("needs at least one of uids, urls and image_hashes")
        return self

    @property
    def again(self) -> "Deny | None":
        """The same lists, as they are by then, applied to all that is kept."""
        return DenyAgain.model_construct(**{**dict(self), "name": f"{self.title}.again"})

    def content(self) -> Mapping[str, str]:
        """All entries of all lists."""
        return {"lists": digest(read_lists(self).record())}

    def identity(self, run: Run) -> dict[str, Any]:
        """Covers what is denied and not where the lists lie, so that a longer list is a new step."""
        identity = super().identity(run)
        entries = {"denied": self.content()["lists"]}
        return {key: value for key, value in identity.items() if key not in Lists._fields} | entries

    def resolved(self) -> Self:
        """The same with the lists' paths absolute."""
        return resolve(self, ("uids", "urls", "image_hashes"))

    def check(self) -> None:
        """Reads the lists once, before any work. Raises InputError where one cannot be read."""
        read_lists(self)

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        columns = {name: name for name in ("uid", "image_hash", "metadata")}
        # Only a step whose address covers all inputs whole is asked whether verdicts stand.
        stands = run.given is not None and self.stands == "always"
        plan = run.plan(self.title, self.identity(run), [Read(run.samples, columns)], reduces=stands)
        if published := plan.published:
            return published
        path = f"{plan.folder}/lists.json"
        publish_beside(run.store, path, sealed(read_lists(self).record()))
        return plan.map_verdicts(partial(_judge_by, run.store, path), info={"lists": path})


class DenyAgain(Deny):
    """What a night ends with: no verdict of it stands, so that all that is kept is judged by the lists of the day."""

    stands: ClassVar[Stands] = "never"

    @property
    def again(self) -> None:
        """Nothing comes after it."""
        return None


class Lists(NamedTuple):
    """What is denied. Uids and hashes are in lower-case hexadecimal digits."""

    uids: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    image_hashes: frozenset[str] = frozenset()

    def record(self) -> dict[str, list[str]]:
        """The entries as JSON-able values, sorted."""
        return {name: sorted(entries) for name, entries in self._asdict().items()}


def judge(lists: Lists, table: pa.Table) -> Verdicts:
    """Drops the rows that a list names; the uid list speaks first, then URLs, then images."""
    found = [_find(lists, row["uid"], row["image_hash"], row["metadata"]) for row in table.to_pylist()]
    whys, matches = ([pair[side] for pair in found] for side in (0, 1))
    kept_N = np.array([why is None for why in whys], dtype=bool)
    details = pa.StructArray.from_arrays([pa.array(matches, pa.string())], names=["match"])
    return Verdicts(kept_N, pa.array(whys, pa.string()), details)


def read_lists(settings: Deny) -> Lists:
    """The lists that the settings name.

    Raises:
        InputError: one cannot be read, or holds a line that cannot be what it lists.
    """
    return Lists(
        uids=read_uids(settings.uids, settings.storage) if settings.uids else frozenset(),
        urls=read_lines(settings.urls, settings.storage) if settings.urls else frozenset(),
        image_hashes=read_hashes(settings.image_hashes, settings.storage) if settings.image_hashes else frozenset(),
    )


def read_lines(path: str, storage: Storage = None) -> frozenset[str]:
    """The entries of a text list. Raises InputError."""
    try:
        text = _read(path, storage).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be text in UTF-8, got {error}") from error
    entries = (line.strip() for line in text.splitlines())
    return frozenset(entry for entry in entries if entry and not entry.startswith("#"))


def read_hashes(path: str, storage: Storage = None) -> frozenset[str]:
    """The image hashes of a text list, in lower case. Raises InputError."""
    lines = read_lines(path, storage)
    _refuse(path, "image hashes of 32 or 64", {line for line in lines if not _HASH.fullmatch(line)})
    return frozenset(line.lower() for line in lines)


def read_uids(path: str, storage: Storage = None) -> frozenset[str]:
    """The uids of a text list or of a DataComp subset file, in lower case. Raises InputError."""
    if not path.endswith(".npy"):
        lines = read_lines(path, storage)
        _refuse(path, "uids of 32", {line for line in lines if parse_uid(line) is None})
        return frozenset(line.lower() for line in lines)
    try:
        pairs = np.lib.format.read_array(io.BytesIO(_read(path, storage)), allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} must be a numpy file, got {error}") from error
    if pairs.dtype != UID_PAIR:
        raise InputError(f"{path} must hold dtype u8,u8, got {pairs.dtype}")
    digits = join_uids(pairs["f0"], pairs["f1"]).hex()
    return frozenset(digits[i : i + 2 * UID_BYTES] for i in range(0, len(digits), 2 * UID_BYTES))


def _judge_by(store: Store, path: str, table: pa.Table) -> Verdicts:
    return judge(_published_lists(store, path), table)


@functools.lru_cache(maxsize=2)
def _published_lists(store: Store, path: str) -> Lists:
    """The lists as the driver saw them; each worker reads them once."""
    return Lists(**{name: frozenset(entries) for name, entries in read_sealed(store, path).items()})


def _find(lists: Lists, uid: bytes, image_hash: bytes | None, metadata: str | None) -> tuple[str | None, str | None]:
    """Why a row is denied and by which entry; (None, None) where it is not."""
    fields = json.loads(metadata) if metadata else {}
    url, sha256 = (value if isinstance(value := fields.get(name), str) else None for name in ("url", "sha256"))
    if uid.hex() in lists.uids:
        return "denied_uid", uid.hex()
    if url in lists.urls:
        return "denied_url", url
    hashes = (image_hash.hex() if image_hash else None, sha256.lower() if sha256 else None)
    match = next((name for name in hashes if name in lists.image_hashes), None)
    return ("denied_image", match) if match else (None, None)


def _refuse(path: str, rule: str, bad: set[str]) -> None:
    if bad:
        raise InputError(f"{path} must list {rule} hexadecimal digits, got {min(bad)!r} ({len(bad)} such lines)")


def _read(path: str, storage: Storage) -> bytes:
    try:
        return read_whole(path, storage)
    except Exception as error:  # each store has its own family of errors
        raise InputError(f"{path} must be a readable list, got {type(error).__name__}: {error}") from error
