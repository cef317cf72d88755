"""From the `models:` section of a config to the two halves of a model.

`check_model` is cheap and comes before any work; `build_preprocessor` runs where images are decoded and reads no
weights; `build_encoder` reads them; `model_identity` is what artifacts are addressed by. Each hands over to the module
of the model's library.
"""

import importlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, cast

from operators.encoders.base import Device, Encoder, Preprocessor, no_text_tower
from operators.encoders.settings import ModelSettings, PixelsSettings, StoredSettings
from pipeline.pool import Pool

# Names, imported at the first use: every decoding task and every encoder of a run is a process of its own, and pays in
# full for what it imports. (Measured: pixels 0.3 s of CPU and 45 MB, timm 4 s and 350 MB, open_clip 4 s and 380 MB.)
_MODULES = {
    "open_clip": "pipeline.models.open_clip",
    "timm": "pipeline.models.timm",
    "pixels": "pipeline.models.pixels",
    "stored": "pipeline.models.stored",
}


class _Library(Protocol):
    """What each of these modules offers; `settings` are always those of its own library."""

    def check(self, settings: Any) -> None: ...
    def build_preprocessor(self, settings: Any) -> Preprocessor: ...
    def build_encoder(self, settings: Any, *, device: Device, threads: int) -> Encoder: ...
    def identity(self, settings: Any) -> dict[str, Any]: ...


def check_model(settings: ModelSettings, *, text: bool = False) -> None:
    """Everything that can be known without loading weights: names, files and their headers, towers.

    Args:
        settings: the model.
        text: whether it will be asked to embed captions.

    Raises:
        ModelError: what is wrong and what is allowed.
    """
    if text and "text" not in settings.modalities:
        raise no_text_tower()
    _library(settings).check(settings)


def mismatch(pool: Pool, settings: ModelSettings) -> str | None:
    """What must hold of a model for this pool and does not: encoders need images, stored embeddings a pool of them."""
    is_stored = isinstance(settings, StoredSettings)
    wrong = next((source for source in pool.sources if source.has_images == is_stored), None)
    if wrong is None:
        return None
    rule = "must be used with a pool of embeddings" if is_stored else "must be library stored for a pool of embeddings"
    return f"{rule}, got library {settings.library} and format {wrong.format}"


def build_preprocessor(settings: ModelSettings) -> Preprocessor:
    """The half without weights."""
    return _library(settings).build_preprocessor(settings)


def build_encoder(settings: ModelSettings, *, device: Device = "auto", threads: int = 1) -> Encoder:
    """The half with weights, ready to run.

    Args:
        settings: the model.
        device: `auto` takes a CUDA device where there is one.
        threads: of this process, for every forward pass on a CPU.

    Raises:
        ModelError: the weights cannot be read, or are those of another architecture.
    """
    return _library(settings).build_encoder(settings, device=device, threads=threads)


def model_identity(settings: ModelSettings) -> str:
    """A string that changes whenever an embedding could: canonical JSON, with files named by content, not by path."""
    return json.dumps(_library(settings).identity(settings), sort_keys=True, separators=(",", ":"))


def decide_precision(settings: ModelSettings, gpus: int | None = None) -> ModelSettings:
    """The settings with `precision: auto` decided: bfloat16 where it will run on GPUs, else float32.

    Asked once for a run, by the process that starts it, so that every worker computes in the same precision and the
    address of the embeddings names it: a run begun without a GPU and resumed with one mixes nothing.

    Args:
        settings: of the model.
        gpus: how many the config asks for. None: it is this machine that has a CUDA device or not; where only other
            machines of a cluster have GPUs, the config must say how many, or `bfloat16`.
    """
    if isinstance(settings, PixelsSettings | StoredSettings) or settings.precision != "auto":
        return settings
    if gpus is None:
        import torch

        gpus = int(torch.cuda.is_available())
    return settings.model_copy(update={"precision": "bfloat16" if gpus else "float32"})


def decide_models(models: Mapping[str, ModelSettings], gpus: int | None = None) -> dict[str, ModelSettings]:
    """`decide_precision` of all models of a run."""
    return {name: decide_precision(settings, gpus) for name, settings in models.items()}


def _library(settings: ModelSettings) -> _Library:
    return cast(_Library, importlib.import_module(_MODULES[settings.library]))
