"""Moving what is damaged out of the way, so that the next run makes it again: exactly it, and what its content decides.

A damaged file goes to `damaged/<its path>` together with all that vouches for it, which is what a run looks for:

    a part                      its folder, `part.json` included, and the manifests that list it, of whatever folder
    a manifest                  alone: it is written again from the parts, which are all there
    a file beside the parts     a fit, quotas, a threshold: with the manifests of its folder that list it
    a checkpoint, outcomes, the ledger, a model      with the JSON that names it

Nothing else needs to go, since addresses see to the rest. A part's address names its shard and settings, so the next
run finds that one part missing and makes it alone. It makes the same bytes, as all but encoders on other devices do;
then what was made from them has the addresses it had, and is found. Where the bytes differ, every step that compares
rows has an address that no run has seen (it covers its inputs' checksums), so it is done again. A step that goes shard
by shard keeps its sound part: it was made from the sound bytes that were there before. A part of verdicts that stand
(`pipeline.given`) cannot be made again: its shard is judged anew, among what still stands.
Manifests of earlier nights are not written again: `pipeline.manifests` reads and moves back what it can.

A run does all this by itself (`rebuilding`): whatever reads a damaged file raises `DamagedError`, the artifact that the
file belongs to is looked through, what is damaged of it is moved away, and the run starts over from what is there.
"""

import logging
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from operators.errors import DamagedError
from pipeline.contents import DAMAGED, FOLDER, HASH, MANIFEST
from pipeline.failures import winnow_error
from pipeline.integrity import damaged_file
from pipeline.progress import Progress
from pipeline.storage import Store

_TRIES = 3
_HOME = re.compile(r"([0-9a-f]{16})/[^/]+")
_WITH_RECORD = re.compile(
    r"(outcomes/[^/]+)\.(?:json|parquet)|(model|.+/checkpoints/[^/]+)/[^/]+|ledger/[^/]+\.parquet"
)

Result = TypeVar("Result")


def quarantine(store: Store, path: str) -> list[str]:
    """Moves a damaged file away, with all that vouches for it; gives the paths that they had."""
    return move_away(store, vouching(store, path))


def vouching(store: Store, path: str) -> list[str]:
    """The files that must go with a damaged one, in an order that leaves nothing half there when it is cut short."""
    if match := _WITH_RECORD.fullmatch(path):
        if match[1]:
            return [f"{match[1]}.json", f"{match[1]}.parquet"]
        if match[2]:
            return sorted(store.find(match[2]), key=lambda name: (not name.endswith(".json"), name))
        return ["ledger.json", path]
    match = FOLDER.fullmatch(path)
    if match is None or MANIFEST.fullmatch(match[2]):
        return [path]
    folder = match[1]
    home = _HOME.fullmatch(match[2])
    named, own = f'"{path}"', [path]
    if home:
        named = f'"{folder}/{home[1]}/'
        own = sorted(store.find(f"{folder}/{home[1]}"), key=lambda name: not name.endswith("/part.json"))
    step = folder.partition("/")[0]
    folders = [f"{step}/{name}" for name in store.names(step) if HASH.fullmatch(name)] if home else [folder]
    return [*(manifest for other in folders for manifest in _manifests(store, other, named)), *own]


def move_away(store: Store, names: Iterable[str]) -> list[str]:
    """Moves files into `damaged/`, in order; those that are not there are passed over. Gives what was moved."""
    moved = []
    for name in dict.fromkeys(names):
        if not store.exists(name):
            continue
        store.move(name, f"{DAMAGED}/{name}")
        moved.append(name)
    return moved


def rebuilding(store: Store, progress: Progress, workers: int, work: Callable[[], Result]) -> Result:
    """Does some work, and where that meets a damaged file of the workspace, moves it away and starts over.

    Args:
        store: the workspace, which the caller has for itself.
        progress: is told what was found.
        workers: CPU workers that look through the rest of what the file belongs to.
        work: to be done; finds what it has published before.

    Raises:
        Exception: what the work raised, where it is something else, or damage that does not end.
    """
    for _ in range(_TRIES):
        try:
            return work()
        except Exception as error:
            if not _repaired(store, progress, workers, error):
                raise
    return work()


def _repaired(store: Store, progress: Progress, workers: int, error: Exception) -> bool:
    """Whether an error came of damage that has been moved away. Nothing is moved unless a second look confirms it."""
    from pipeline.verify.folders import look_again  # it knows this module

    ours = winnow_error(error)
    path = damaged_file(store, ours) if isinstance(ours, DamagedError) else None
    if path is None:
        return False
    found = look_again(store, path, workers)
    for damage in found:
        note = f"damaged: {damage}; moved to {DAMAGED}/, and made again"
        progress.note(note, level=logging.WARNING, event="quarantined", path=damage.path)
        quarantine(store, damage.path)
    return bool(found)


def _manifests(store: Store, folder: str, named: str) -> list[str]:
    """The manifests of a folder that name a path, as far as they can be read."""
    names = [name for name in store.names(folder) if MANIFEST.fullmatch(name)]
    return [f"{folder}/{name}" for name in names if named.encode() in store.read(f"{folder}/{name}")]
