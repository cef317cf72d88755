"""Putting together what can go, and letting it go."""

import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.clean.leftovers import Leftover, find_leftovers, older_than
from pipeline.clean.unused import find_unused
from pipeline.storage import Store

REMOTE_HOURS = 24.0
"""Tasks of a run that has lost its lease, on another machine, may still be writing what is younger."""


def find(store: Store, *, unused: bool, hours: float | None = None) -> list[Leftover]:
    """What can go from a workspace that the caller has for itself, kind by kind; no file twice.

    Args:
        store: the workspace.
        unused: also what the latest run does not refer to.
        hours: leave alone what was changed since. Default: none on a disk of this machine, a day in an object store.
    """
    found = [*find_leftovers(store), *(find_unused(store) if unused else [])]
    least = hours if hours is not None else 0.0 if store.is_local else REMOTE_HOURS
    if least:
        latest = time.time() - least * 3600
        found = [older_than(store, leftover, latest) for leftover in found]
    seen: set[str] = set()
    kinds: dict[tuple[str, str], dict[str, int]] = {}
    for leftover in found:
        fresh = {path: size for path, size in leftover.files.items() if path not in seen}
        seen |= fresh.keys()
        kinds.setdefault((leftover.what, leftover.where), {}).update(fresh)
    return [Leftover(what, where, files) for (what, where), files in kinds.items() if files]


def delete(store: Store, leftovers: Iterable[Leftover]) -> None:
    """Deletes files, the records before what they name, and on a disk the folders that are empty then."""
    for leftover in leftovers:
        paths = sorted(leftover.files, key=lambda path: (not path.endswith(".json"), path))
        for path in sorted(paths, key=lambda path: "/manifest-" not in path):
            store.remove(path)
        if store.is_local:
            _remove_empty(store, paths)


def _remove_empty(store: Store, paths: Iterable[str]) -> None:
    root = Path(store.path())
    for path in paths:
        folder = Path(store.path(path)).parent
        while folder != root:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # there is more in it
                break
            folder = folder.parent
