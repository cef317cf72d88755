"""The finished model, as open_clip loads it: `open_clip_config.json` and `open_clip_model.safetensors`.

`training.json` beside them, written last, says which training made them.
"""

from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pipeline.storage import Store, absolute, to_json
from pipeline.weights import CONFIG_NAME

MODEL = "model"
WEIGHTS_NAME = "open_clip_model.safetensors"
ORIGIN_NAME = "training.json"


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
    store.remove(f"{home}{ORIGIN_NAME}")
    store.replace(f"{home}{WEIGHTS_NAME}", save(tensors, metadata={"format": "pt"}))
    store.replace(f"{home}{CONFIG_NAME}", to_json(config))
    store.replace(f"{home}{ORIGIN_NAME}", to_json(origin))


def read_origin(store: Store, folder: str) -> dict[str, Any]:
    """What `training.json` of a model folder says; nothing where the folder is not whole."""
    home = f"{folder}/" if folder else ""
    names = [f"{home}{name}" for name in (WEIGHTS_NAME, CONFIG_NAME, ORIGIN_NAME)]
    if not all(store.exists(name) for name in names):
        return {}
    origin: dict[str, Any] = store.read_json(names[-1])
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
