"""Checkpoints: what a training needs to go on as if it had never stopped.

    <folder>/<step>/<sha256>.pt        weights and optimiser, by parameter name
    <folder>/<step>/manifest.json      written last: the file above, its size, and the cursor

The cursor is the step: the order of samples is a function of it, and so is every generator (augmentation goes by uid
and epoch, dropout by step and worker), so no generator has a state of its own to be kept.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from operators.errors import DamagedError, WorkspaceError
from pipeline.integrity import checksum, damaged, read_sealed, reading, sealed
from pipeline.local_files import file_sha256
from pipeline.quarantine import move_away
from pipeline.storage import Store

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint's manifest.

    Attributes:
        step: steps that are done: the next one to do.
        samples_seen: the data cursor.
        path: of the state, relative to the workspace.
        size, sha256: of the state.
        seconds, waited: that training took, and waited for data, up to here, over all attempts.
        loss: of the last step.
        format_version: of this layout.
    """

    step: int
    samples_seen: int
    path: str
    size: int
    sha256: str
    seconds: float
    waited: float
    loss: float
    format_version: int = FORMAT_VERSION


def save_checkpoint(store: Store, folder: str, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Checkpoint:
    """Writes a checkpoint; it is there whole or not at all.

    Args:
        store: the workspace.
        folder: of the training's checkpoints.
        state: tensors and plain values.
        facts: the fields of `Checkpoint` that are not about the file.
    """
    home = home_of(folder, facts["step"])
    with store.scratch(home) as scratch:
        with scratch.open("wb") as file:
            torch.save(dict(state), file)
        sha256 = file_sha256(scratch)
        checkpoint = Checkpoint(path=f"{home}/{sha256[:16]}.pt", size=scratch.stat().st_size, sha256=sha256, **facts)
        store.publish_file(scratch, checkpoint.path)
    if store.publish(f"{home}/{_MANIFEST}", sealed(asdict(checkpoint))):
        return checkpoint
    return read_checkpoint(store, home)


def home_of(folder: str, step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"{folder}/{step:09d}"


def find_checkpoints(store: Store, folder: str) -> list[Checkpoint]:
    """The complete checkpoints, oldest first; those that are not there in full are passed over.

    A store's listing may lag behind, so that it names some that are gone.

    Raises:
        WorkspaceError: one is of another format.
    """
    files = store.find(folder)
    found = []
    for name in files:
        if name.endswith(f"/{_MANIFEST}"):
            try:
                found.append(read_checkpoint(store, name.rpartition("/")[0]))
            except (DamagedError, FileNotFoundError):
                continue
    return [checkpoint for checkpoint in found if files.get(checkpoint.path) == checkpoint.size]


def read_checkpoint(store: Store, home: str) -> Checkpoint:
    """The manifest in a checkpoint's folder. Raises FileNotFoundError, DamagedError, WorkspaceError (its format)."""
    name = f"{home}/{_MANIFEST}"
    record = read_sealed(store, name)
    if (version := record.get("format_version")) != FORMAT_VERSION:
        rule = f"must be of checkpoint format {FORMAT_VERSION}"
        raise WorkspaceError(f"{store.url}/{name} {rule}, got {version}: remove its folder to go on without it")
    with reading(store, name):
        return Checkpoint(**record)


def check_state(store: Store, checkpoint: Checkpoint) -> None:
    """Raises DamagedError unless a checkpoint's state holds the bytes that were written."""
    with reading(store, checkpoint.path):
        got = checksum(store, checkpoint.path)
    if got.sha256 != checkpoint.sha256:
        raise damaged(store, checkpoint.path, f"the SHA-256 {got.sha256}, not {checkpoint.sha256}")


def newest_sound(store: Store, folder: str) -> int:
    """The step of the newest checkpoint that is whole, 0 where there is none. Those after it are moved away."""
    homes = {name.rpartition("/")[0] for name in store.find(folder) if name.endswith(f"/{_MANIFEST}")}
    complete = {checkpoint.path.rpartition("/")[0]: checkpoint for checkpoint in find_checkpoints(store, folder)}
    for home in sorted(homes, reverse=True):
        try:
            if home in complete:
                check_state(store, complete[home])
                return complete[home].step
        except DamagedError:
            pass
        move_away(store, [f"{home}/{_MANIFEST}", *store.find(home)])
    return 0


def load_checkpoint(store: Store, checkpoint: Checkpoint) -> dict[str, Any]:
    """The state. Nothing is unpickled but tensors and plain values.

    Raises:
        DamagedError: its bytes are not those that were written.
    """
    check_state(store, checkpoint)
    with store.open(checkpoint.path) as file:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def prune_checkpoints(store: Store, folder: str, keep: int) -> None:
    """Removes all but the newest, the manifest first, so that none is ever half there."""
    for checkpoint in find_checkpoints(store, folder)[:-keep]:
        home = checkpoint.path.rpartition("/")[0]
        store.remove(f"{home}/{_MANIFEST}")
        store.remove(home)
