"""Image towers of timm: the reference transform and the pooled tower, from a name and a state dict.

Legend: H height, W width, C colours (RGB).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from operators import torchvision_ops  # noqa: F401

# isort: split
import timm
from timm.data import create_transform, resolve_data_config

from operators.encoders.base import no_text_tower
from operators.encoders.settings import TimmSettings
from operators.encoders.torch_encoder import Runtime, TorchEncoder, Towers, must_fit, seeded
from operators.encoders.transforms import ReferenceTransform
from operators.errors import ModelError


class TimmPreprocessor:
    """timm's evaluation transform."""

    def __init__(self, settings: TimmSettings) -> None:
        self._transform = _reference_transform(settings)
        self.draft = self._transform.resize_size if settings.decode == "fast" else None

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(H, W, C) of the model's input size, from an image in mode RGB."""
        return self._transform.pixels(image)

    def text(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Raises ModelError: these towers read images only."""
        raise no_text_tower()


def build_encoder(settings: TimmSettings, state_dict: Mapping[str, Tensor] | None, runtime: Runtime) -> TorchEncoder:
    """Builds the tower without its classifier; a row is the pooled feature (for DINOv2, the class token).

    Args:
        settings: the model.
        state_dict: its weights, as timm or the original authors save them; None for random ones.
        runtime: where to run.

    Raises:
        ModelError: the name is unknown, or the weights are those of another architecture.
    """
    transform = _reference_transform(settings)
    cfg = _pretrained_cfg(settings)
    kwargs: dict[str, Any] = {"num_classes": 0}
    if cfg["fixed_input_size"]:  # only such models take a size; their position embeddings are resized on loading
        kwargs["img_size"] = cfg["input_size"][1:]
    if state_dict is not None:
        # Declared as a checkpoint without classes, since timm loads any other into a tower without checking its keys.
        headless = _without_classifier(state_dict, cfg["classifier"])
        kwargs["pretrained_cfg_overlay"] = {"state_dict": headless, "num_classes": 0, "label_offset": 0}
    with seeded(settings.seed), must_fit(settings.name):
        model = timm.create_model(settings.name, pretrained=state_dict is not None, **kwargs)
    model.pretrained_cfg.pop("state_dict", None)
    model.eval().requires_grad_(False).to(runtime.device)
    return TorchEncoder(Towers(model.head_hidden_size, transform.mean, transform.std, model), runtime)


def _without_classifier(state_dict: Mapping[str, Tensor], classifier: str | Sequence[str] | None) -> dict[str, Tensor]:
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return {key: value for key, value in state_dict.items() if not key.startswith(tuple(f"{name}." for name in names))}


def _pretrained_cfg(settings: TimmSettings) -> dict[str, Any]:
    """Timm's record of how a model was trained, with the input size of the settings."""
    try:
        cfg = timm.get_pretrained_cfg(settings.name) if timm.is_model(settings.name) else None
    except RuntimeError:  # the tag after the dot
        cfg = None
    if cfg is None:
        raise ModelError(f"name must be a model of timm, with or without one of its tags, got {settings.name!r}")
    record: dict[str, Any] = cfg.to_dict()
    if settings.image_size is not None:
        record["input_size"] = (3, settings.image_size, settings.image_size)
    return record


def _reference_transform(settings: TimmSettings) -> ReferenceTransform:
    return ReferenceTransform(create_transform(**resolve_data_config(pretrained_cfg=_pretrained_cfg(settings))))
