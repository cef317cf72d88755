"""Snapshots: what the curation of a growing pool was after each night, for ever.

    snapshots/0003.json               the snapshot: sealed, immutable, written last; no time of day in it
    snapshots/0003.night.json         when and where it was made, and how long that took
    snapshots/0003.html               its report, where `winnow report --snapshot` was asked for it
    snapshots/current.json            which one is current: the latest, or an earlier one that was gone back to
    snapshots/diff-<hash>/*.parquet   the samples that came and went

A snapshot says where its artifacts lie, as `run.json` does of the latest run. Artifacts are immutable and shared, so it
is small, and going back to one moves a pointer. Ids count up and are never used twice.

`current.json` also says what was the latest snapshot when it was written. One that was published later is current
without it: the snapshot itself is what commits a night.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operators.errors import WorkspaceError
from pipeline.integrity import read_sealed, sealed
from pipeline.storage import Store

FOLDER = "snapshots"
FORMAT_VERSION = 1
CURRENT = f"{FOLDER}/current.json"

_NAME = re.compile(r"(\d{4,})\.json")

Snapshot = Mapping[str, Any]
"""A record as it is written; `pipeline.nightly.snapshot` says what is in it."""


@dataclass(frozen=True)
class History:
    """The snapshots of a workspace.

    Attributes:
        ids: of all, rising.
        current: the one that the next night goes on from; None before the first.
        pointed: whether `current.json` says so, too.
    """

    ids: tuple[int, ...] = ()
    current: int | None = None
    pointed: bool = True

    @property
    def next(self) -> int:
        """The id of the next snapshot."""
        return self.ids[-1] + 1 if self.ids else 1


def read_history(store: Store) -> History:
    """Which snapshots there are. Raises DamagedError."""
    found = sorted(int(match[1]) for name in store.names(FOLDER) if (match := _NAME.fullmatch(name)))
    # A listing may be old: the names that follow are asked for.
    while store.exists(path_of(following := found[-1] + 1 if found else 1)):
        found.append(following)
    if not found:
        return History()
    try:
        pointer = read_sealed(store, CURRENT)
    except FileNotFoundError:
        pointer = {"current": None, "latest": 0}
    if pointer["latest"] < found[-1]:
        return History(tuple(found), found[-1], pointed=False)
    return History(tuple(found), pointer["current"])


def read_snapshot(store: Store, number: int) -> Snapshot:
    """One snapshot.

    Raises:
        WorkspaceError: there is none of that id, or it is of another format.
        DamagedError: it is not what was written.
    """
    try:
        snapshot: Snapshot = read_sealed(store, path_of(number))
    except FileNotFoundError as error:
        ids = read_history(store).ids
        there = f"1 to {ids[-1]}" if ids else "none"
        raise WorkspaceError(f"snapshot must be one of {store.url} (there: {there}), got {number}") from error
    if snapshot["format_version"] != FORMAT_VERSION:
        got = snapshot["format_version"]
        raise WorkspaceError(f"{store.url}/{path_of(number)} must have format_version {FORMAT_VERSION}, got {got}")
    return snapshot


def read_snapshots(store: Store) -> list[Snapshot]:
    """All snapshots, the first one first."""
    return [read_snapshot(store, number) for number in read_history(store).ids]


def publish_snapshot(store: Store, snapshot: Snapshot) -> None:
    """Commits a night. Raises WorkspaceError where there is another snapshot of that id."""
    path = path_of(snapshot["id"])
    if not store.publish(path, sealed(snapshot)):
        raise WorkspaceError(f"{store.url}/{path} must not be there before its night, got another one's")
    make_current(store, snapshot["id"])


def make_current(store: Store, number: int) -> None:
    """Has the next night go on from a snapshot."""
    store.replace(CURRENT, sealed({"current": number, "latest": read_history(store).ids[-1]}))


def path_of(number: int) -> str:
    """Where a snapshot lies."""
    return f"{FOLDER}/{number:04d}.json"


def report_path(number: int) -> str:
    """Where the report of a snapshot lies that is not the current one's."""
    return f"{FOLDER}/{number:04d}.html"


def when_begun(store: Store, number: int) -> str:
    """When the night of a snapshot began, also of one that is about to be published: UTC; empty where nobody knows."""
    try:
        return str(store.read_json(night_path(number))["started"])
    except FileNotFoundError:
        return ""


def night_path(number: int) -> str:
    """Where the times of the night that made a snapshot lie."""
    return f"{FOLDER}/{number:04d}.night.json"
