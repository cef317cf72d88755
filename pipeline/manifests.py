"""The manifests that a record names, a run's or a snapshot's: also those that went with a damaged part.

Every night's manifest of an artifact lists the parts of all nights before. So one damaged part takes all of these
manifests along into `damaged/` (`pipeline.quarantine`), and the next night writes its own alone. The others are whole
files still, and are read there. Once all that one lists is there again, it is moved back.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from operators.errors import DamagedError, WorkspaceError
from pipeline.artifact import Artifact, read_manifest
from pipeline.contents import DAMAGED, FOLDER, MANIFEST
from pipeline.integrity import checksum
from pipeline.storage import Store


def read_recorded(store: Store, place: Mapping[str, str]) -> Artifact:
    """Reads an artifact that a record names, from `damaged/` where its manifest was moved there; parts may be lost.

    Args:
        store: the workspace.
        place: `folder` and `manifest`, as the record has them.

    Raises:
        WorkspaceError: it is in neither place, or of another format version.
        DamagedError: it is not what was written.
    """
    folder, name = place["folder"], place["manifest"]
    try:
        return read_manifest(store, folder, name)
    except FileNotFoundError as error:
        try:
            return read_manifest(store, folder, f"{DAMAGED}/{name}")
        except (FileNotFoundError, DamagedError):
            raise WorkspaceError(
                f"{store.url} must have the manifests that its record names, got no {name}: run the job again, or of "
                "nights go on from an earlier one (`winnow nightly CONFIG --rollback N`), or begin anew in another "
                "workspace"
            ) from error


def has_recorded(store: Store, record: Mapping[str, Any]) -> bool:
    """Whether all manifests that a record names are in their places."""
    return all(store.exists(name) for name in _named(record))


def moved_away(store: Store, records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Where the manifests lie now that records name and that went with a damaged part: path -> path in `damaged/`."""
    there = store.find(DAMAGED)
    names = {name for record in records for name in _named(record)} if there else set()
    return {name: path for name in names if (path := f"{DAMAGED}/{name}") in there and not store.exists(name)}


def bring_back(store: Store) -> list[str]:
    """Moves the manifests out of `damaged/` of which all that they list is there again; gives their paths.

    Args:
        store: the workspace, which the caller has for itself.
    """
    back: list[str] = []
    files: dict[str, Mapping[str, int]] = {}
    for moved in store.find(DAMAGED):
        name = moved.removeprefix(f"{DAMAGED}/")
        match = FOLDER.fullmatch(name)
        if match is None or not MANIFEST.fullmatch(match[2]) or store.exists(name):
            continue
        try:
            artifact = read_manifest(store, match[1], moved)
        except (DamagedError, WorkspaceError):  # it was moved away for itself, or is of another version
            continue
        if _is_whole(store, artifact, files):
            store.move(moved, name)
            back.append(name)
    return back


def _named(record: Mapping[str, Any]) -> list[str]:
    """The manifests that a record names."""
    return [place["manifest"] for part in ("artifacts", "clusters") for place in record[part].values()]


def _is_whole(store: Store, artifact: Artifact, files: dict[str, Mapping[str, int]]) -> bool:
    """Whether the parts of an artifact and its files are there; `files` remembers what is in which folder.

    A part is named by its content, so one of that name and size is the one that was written, as far as can be told
    without reading it.
    """
    for path, size in zip(artifact.column("path"), artifact.column("size"), strict=True):
        home = path.rpartition("/")[0]
        folder = home.rpartition("/")[0]
        if folder not in files:
            files[folder] = store.find(folder)
        if files[folder].get(path) != size or f"{home}/part.json" not in files[folder]:
            return False
    return all(store.exists(path) and checksum(store, path) == known for path, known in artifact.files.items())
