"""What the latest run of a curation does not refer to: artifacts of other configs, of shards that are gone.

In use is what `run.json` names, and every snapshot; what that was made from, as manifests say, reference sets
included; and every part and file that these manifests list. Nothing else is looked at: trainings, trained filters,
evaluations, data sets, and what exports note, by which they know their own files again.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from operators.errors import DamagedError, WorkspaceError
from pipeline.artifact import Artifact, named_files, read_manifest
from pipeline.clean.leftovers import Leftover
from pipeline.contents import MANIFEST, artifact_folders
from pipeline.export.claims import FOLDER as EXPORTS
from pipeline.integrity import read_sealed
from pipeline.manifests import moved_away
from pipeline.record import RECORD, read_record
from pipeline.snapshots import read_snapshots
from pipeline.storage import Store

_OTHERS = ("comparison.json", "eval_results.jsonl", "metrics.jsonl")
"""Records of jobs that refer to artifacts without saying which."""
_DIGEST = re.compile(r"[0-9a-f]{16}")


def find_unused(store: Store) -> list[Leftover]:
    """The files of artifacts that the latest run does not use, folder by folder.

    Raises:
        WorkspaceError: it cannot be known what is in use.
    """
    top = store.names("")
    if RECORD not in top:
        return []
    if others := [name for name in _OTHERS if name in top]:
        raise WorkspaceError(
            f"{store.url} must hold nothing but a curation for --unused, got {others[0]}: its job uses artifacts, too"
        )
    folders = [
        folder
        for folder in artifact_folders(store)
        if not folder.startswith(f"{EXPORTS}/") and not folder.partition("/")[0].endswith(".training")
    ]
    manifests = {
        f"{folder}/{name}": read_manifest(store, folder, f"{folder}/{name}")
        for folder in folders
        for name in store.names(folder)
        if MANIFEST.fullmatch(name)
    }
    records = [read_record(store), *read_snapshots(store)]
    moved = moved_away(store, records)
    manifests |= _read_moved(store, moved)
    used = _in_use(store, records, manifests, moved)
    homes = _homes(manifests[name] for name in used)
    return [
        Leftover("not used by the latest run", folder, _unused_files(store, folder, manifests, used, homes))
        for folder in folders
    ]


def _read_moved(store: Store, moved: Mapping[str, str]) -> dict[str, Artifact]:
    """The manifests in `damaged/`, by the paths that they had; without those that are damaged themselves."""
    found = {}
    for name, path in moved.items():
        with suppress(DamagedError):
            found[name] = read_manifest(store, name.rpartition("/")[0], path)
    return found


def _in_use(
    store: Store, records: Iterable[Mapping[str, Any]], manifests: Mapping[str, Artifact], moved: Mapping[str, str]
) -> set[str]:
    """The manifests that records name, and those that they were made from, directly or not."""
    by_digest = {artifact.digest: name for name, artifact in manifests.items()}
    parts = [record[part] for record in records for part in ("artifacts", "clusters")]
    waiting = [place["manifest"] for part in parts for place in part.values()]
    used: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in used or name not in manifests:  # it was damaged itself; what was made from it is whole
            continue
        used.add(name)
        written: dict[str, Any] = read_sealed(store, moved.get(name, name))
        if "reads" not in written:
            raise WorkspaceError(
                f"{store.url} must be of a version that records what was made from what for --unused, got {name}"
            )
        mentioned = _DIGEST.findall(str(written["settings"]))
        waiting += [*written["reads"], *(by_digest[digest] for digest in mentioned if digest in by_digest)]
    return used


def _homes(artifacts: Iterable[Artifact]) -> dict[str, set[str]]:
    """The folders of parts by the folder of the artifact: one may list parts of another, verdicts that stand."""
    homes: dict[str, set[str]] = {}
    for artifact in artifacts:
        for path in artifact.column("path"):
            home = path.rpartition("/")[0]
            homes.setdefault(home.rpartition("/")[0], set()).add(home)
    return homes


def _unused_files(
    store: Store, folder: str, manifests: Mapping[str, Artifact], used: set[str], homes: Mapping[str, set[str]]
) -> dict[str, int]:
    kept: set[str] = set()
    for name in used:
        artifact = manifests[name]
        kept |= {path for path in (name, *named_files(artifact.info)) if path.startswith(f"{folder}/")}
    beside = {name for name in used if manifests[name].folder == folder}
    return {
        path: size
        for path, size in store.find(folder).items()
        if path not in kept
        and path.rpartition("/")[0] not in homes.get(folder, ())
        and not (beside and path.count("/") == 2 and not MANIFEST.fullmatch(path.rpartition("/")[2]))
    }
