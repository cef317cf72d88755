"""Checkpoints: what a training needs to go on as if it had never stopped.

    <folder>/<step>/<sha256>.pt        weights and optimiser, by parameter name
    <folder>/<step>/manifest.json      written last: the file above, its size, and the cursor

The cursor is the step: the order of samples is a function of it, and so is every generator (augmentation goes by uid
and epoch, dropout by step and worker), so no generator has a state of its own to be kept.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import torch

from operators.errors import WorkspaceError
from pipeline.storage import Store, file_sha256

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
    home = f"{folder}/{facts['step']:09d}"
    with store.scratch(home) as scratch:
        with scratch.open("wb") as file:
            torch.save(dict(state), file)
        sha256 = file_sha256(scratch)
        checkpoint = Checkpoint(path=f"{home}/{sha256[:16]}.pt", size=scratch.stat().st_size, sha256=sha256, **facts)
        store.publish_file(scratch, checkpoint.path)
    if store.publish_json(f"{home}/{_MANIFEST}", asdict(checkpoint)):
        return checkpoint
    return _read(store, f"{home}/{_MANIFEST}")


def find_checkpoints(store: Store, folder: str) -> list[Checkpoint]:
    """The complete checkpoints, oldest first; those whose state is not there in full are passed over.

    Raises:
        WorkspaceError: one is of another format.
    """
    files = store.find(folder)
    found = [_read(store, name) for name in files if name.endswith(f"/{_MANIFEST}")]
    return [checkpoint for checkpoint in found if files.get(checkpoint.path) == checkpoint.size]


def load_checkpoint(store: Store, checkpoint: Checkpoint) -> dict[str, Any]:
    """The state. Nothing is unpickled but tensors and plain values.

    Raises:
        WorkspaceError: its bytes are not those that were written.
    """
    with store.open(checkpoint.path) as file:
        if (got := _sha256(file)) != checkpoint.sha256:
            rule = f"must have the SHA-256 {checkpoint.sha256}"
            path = f"{store.url}/{checkpoint.path}"
            raise WorkspaceError(f"{path} {rule}, got {got}: remove its folder to go on from an earlier one")
        file.seek(0)
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def prune_checkpoints(store: Store, folder: str, keep: int) -> None:
    """Removes all but the newest, the manifest first, so that none is ever half there."""
    for checkpoint in find_checkpoints(store, folder)[:-keep]:
        home = checkpoint.path.rpartition("/")[0]
        store.remove(f"{home}/{_MANIFEST}")
        store.remove(home)


def _read(store: Store, name: str) -> Checkpoint:
    manifest = store.read_json(name)
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        rule = f"must be of checkpoint format {FORMAT_VERSION}"
        raise WorkspaceError(f"{store.url}/{name} {rule}, got {version}: remove its folder to go on without it")
    return Checkpoint(**manifest)


def _sha256(file: BinaryIO) -> str:
    hasher = hashlib.sha256()
    while block := file.read(2**22):
        hasher.update(block)
    return hasher.hexdigest()
