"""The finished model, as open_clip loads it: `open_clip_config.json` and `open_clip_model.safetensors`.

`training.json` beside them, written last, says which training made them, and size and SHA-256 of both.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from safetensors.torch import save
from torch import Tensor

from operators.errors import DamagedError
from pipeline.integrity import Checksum, checksum, damaged, read_sealed, reading, sealed
from pipeline.storage import Store, absolute, to_json
from pipeline.weights import CONFIG_NAME, ORIGIN_NAME

MODEL = "model"
WEIGHTS_NAME = "open_clip_model.safetensors"


def write_model(
    store: Store, folder: str, state: Mapping[str, Tensor], config: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Replaces a model folder. It counts as finished once `training.json` is there.

    Args:
        store: the root.
        folder: relative to it; empty for the root itself.
        state: weights by name.
        config: `{model_cfg, preprocess_cfg}`.
        origin: what `training.json` is to say.
    """
    home = f"{folder}/" if folder else ""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    files = {WEIGHTS_NAME: save(tensors, metadata={"format": "pt"}), CONFIG_NAME: to_json(config)}
    store.remove(f"{home}{ORIGIN_NAME}")
    for name, data in files.items():
        store.replace(f"{home}{name}", data)
    sums = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    store.replace(f"{home}{ORIGIN_NAME}", sealed({**origin, "files": sums}))


def read_origin(store: Store, folder: str) -> dict[str, Any]:
    """What `training.json` of a model folder says; nothing where the folder is not whole, so that it is made again."""
    try:
        return check_model_folder(store, folder, sizes_only=not store.is_local)
    except (FileNotFoundError, DamagedError):
        return {}


def check_model_folder(store: Store, folder: str, *, sizes_only: bool = False) -> dict[str, Any]:
    """What `training.json` of a whole model folder says.

    Args:
        store: the root.
        folder: relative to it; empty for the root itself.
        sizes_only: do not read the weights.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: the files beside it are not those that were written.
    """
    home = f"{folder}/" if folder else ""
    origin: dict[str, Any] = read_sealed(store, f"{home}{ORIGIN_NAME}")
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        known = origin.get("files", {}).get(name)
        with reading(store, f"{home}{name}"):
            size = store.size(f"{home}{name}")
            got = Checksum(size, known["sha256"]) if sizes_only and known else checksum(store, f"{home}{name}")
        if known and known != asdict(got):
            raise damaged(store, f"{home}{name}", f"{got.size} bytes of SHA-256 {got.sha256}, not {known}")
    return origin


def copy_model(store: Store, folder: str, output: str) -> None:
    """Copies a finished model to a folder outside the workspace, unless that holds it already."""
    target = output_store(store, output)
    if read_origin(target, "") == read_origin(store, folder):
        return
    target.remove(ORIGIN_NAME)
    for name in (WEIGHTS_NAME, CONFIG_NAME, ORIGIN_NAME):
        target.replace(name, store.read(f"{folder}/{name}"))


def output_store(store: Store, output: str) -> Store:
    """The folder that a model is copied to; a remote one is opened with the workspace's options."""
    return Store(absolute(output), store.options if "://" in output else {})
