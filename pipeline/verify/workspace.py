"""All that a workspace holds, read again; and what depends on what is damaged of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from operators.errors import DamagedError, WorkspaceError
from pipeline.contents import FOLDER, artifact_folders
from pipeline.export.claims import FOLDER as EXPORTS
from pipeline.integrity import what_is_wrong
from pipeline.ledger import MANIFEST
from pipeline.progress import Progress
from pipeline.record import RECORD, read_record
from pipeline.spread import spread
from pipeline.storage import Store
from pipeline.verify.folders import Folder, Manifest, check_folders
from pipeline.verify.ledger import check_ledger
from pipeline.verify.parts import Damage, Tally
from pipeline.verify.records import check_partition, check_record, find_records

_SOUND, _UNFINISHED, _FILES = "sound", "unfinished", "files only"


@dataclass(frozen=True)
class Row:
    """A line of the table: an artifact, or something else that was looked at."""

    name: str
    tally: Tally
    state: str


@dataclass
class Verified:
    """What was found of one workspace.

    Attributes:
        store: the workspace.
        rows: in the order of their names.
        damage: every file that is not what it must be.
        depends: artifact that is damaged -> what was made from it, directly or not.
    """

    store: Store
    rows: list[Row] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    depends: dict[str, list[str]] = field(default_factory=dict)


def verify(store: Store, *, workers: int, progress: Progress) -> Verified:
    """Reads a workspace again; those inside it are looked at each by itself.

    Args:
        store: the workspace.
        workers: CPU workers.
        progress: of the job.
    """
    found = Verified(store)
    tallies: dict[str, Tally] = {}
    states: dict[str, str] = {}
    names = [name for name in artifact_folders(store) if not name.startswith(f"{EXPORTS}/")]  # records, looked at below
    folders: dict[str, Folder] = {}
    with progress.step(store.url, None) as shown:
        for folder in check_folders(store, names, workers=workers):
            folders[folder.name] = folder
            if folder.tally != Tally():
                tallies[folder.name] = folder.tally
            states[folder.name] = _SOUND if folder.manifests else _UNFINISHED if folder.tally.parts else _FILES
            shown.advance(folder.tally.rows)
        for name, tally in spread(partial(check_record, store), list(find_records(store)), workers=workers):
            tallies[name] = tallies.get(name, Tally()) + tally
        top = store.names("")
        record = _read_record(store, tallies) if RECORD in top else None
        if record:
            _check_run(store, record, tallies, workers)
        if {RECORD, MANIFEST} & set(top):
            ledger = check_ledger(store, record, workers=workers)
            tallies["ledger"], states["ledger"] = ledger.tally, ledger.state or _SOUND
    found.rows = [
        Row(name, tally, f"damaged ({len(tally.damage):,})" if tally.damage else states.get(name, _SOUND))
        for name, tally in sorted(tallies.items())
    ]
    damage = {item.path: item for tally in tallies.values() for item in tally.damage}
    found.damage = [damage[path] for path in sorted(damage)]
    hurt = {match[1] for path in damage if (match := FOLDER.fullmatch(path))}
    manifests = [manifest for folder in folders.values() for manifest in folder.manifests]
    found.depends = {name: dependents(name, manifests, record) for name in sorted(hurt)}
    return found


def _read_record(store: Store, tallies: dict[str, Tally]) -> Mapping[str, Any] | None:
    try:
        return read_record(store)
    except DamagedError as error:
        tallies[RECORD] = Tally(1, damage=(Damage(RECORD, "what was written", what_is_wrong(error)),))
        return None


def _check_run(store: Store, record: Mapping[str, Any], tallies: dict[str, Tally], workers: int) -> None:
    """Whether the artifacts of the recorded run are there and fit together."""
    places = [*record["artifacts"].values(), *record["clusters"].values()]
    for place in places:
        if not store.exists(place["manifest"]):
            gone = Damage(place["manifest"], f"there, as {RECORD} says", "no such file")
            tallies[place["folder"]] = tallies.get(place["folder"], Tally()) + Tally(damage=(gone,))
    samples = record["artifacts"]["samples"]
    pairs = [(samples, place) for place in places]
    for damage in spread(partial(check_partition, store), pairs, workers=workers):
        for item in damage:
            folder = item.path.rpartition("/manifest-")[0] or "/".join(item.path.split("/")[:2])
            tallies[folder] = tallies.get(folder, Tally()) + Tally(damage=(item,))


def dependents(folder: str, manifests: Sequence[Manifest], record: Mapping[str, Any] | None) -> list[str]:
    """What was made from an artifact, directly or not: the folders of others, and the ledger.

    Args:
        folder: the artifact's.
        manifests: of the workspace.
        record: of its run, if any.
    """
    made_from: dict[str, set[str]] = defaultdict(set)
    folder_of = {manifest.digest: _folder(manifest.name) for manifest in manifests}
    for manifest in manifests:
        sources = {_folder(name) for name in manifest.reads or ()}
        sources |= {folder_of[digest] for digest in manifest.mentions & folder_of.keys()}
        for source in sources - {_folder(manifest.name)}:
            made_from[source].add(_folder(manifest.name))
    waiting, reached = [folder], {folder}
    while waiting:
        new = made_from[waiting.pop()] - reached
        reached |= new
        waiting += new
    judged = ["samples", *record["verdicts"]] if record else []
    ledger = [MANIFEST] if any(record["artifacts"][name]["folder"] in reached for name in judged if record) else []
    return sorted(reached - {folder}) + ledger


def _folder(manifest: str) -> str:
    return manifest.rpartition("/")[0]


def check_is_workspace(store: Store) -> None:
    """Raises WorkspaceError where there is nothing at all."""
    if not store.names(""):
        raise WorkspaceError(f"{store.url} must be a workspace, got an empty folder or none")
