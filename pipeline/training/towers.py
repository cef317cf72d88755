"""The model to train: open_clip's module, the pixels that it wants, and the config that it is exported with.

Legend: N rows, H height, W width, C colours (RGB), D dimensions, L tokens.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from operators import torchvision_ops  # noqa: F401

# isort: split
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from operators.encoders.open_clip import Architecture, build_model, reference_transform
from operators.encoders.settings import OpenClipSettings
from operators.errors import ModelError
from operators.training.losses import Head, Pairs
from operators.training.parameters import lock_towers
from pipeline.models.open_clip import find_architecture, load_weights
from pipeline.training.settings import TrainedModel

_SIGLIP = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
"""Zhai et al. 2023, section 3.2: at first almost every pair is a negative, so the bias starts there."""


def find_towers(encoder: OpenClipSettings, loss: str) -> Architecture:
    """What is trained, as its JSON file would say it.

    Args:
        encoder: names the architecture, and the weights, which may be an export folder with a transform of its own.
        loss: `siglip` gives the model a logit bias where it has none.

    Raises:
        ModelError: there is no such architecture, or it is none of two towers.
    """
    architecture = find_architecture(encoder)
    if "multimodal_cfg" in architecture.model_cfg:
        raise ModelError(f"model.name must be a model of two towers, got {encoder.name}, which has a decoder")
    missing = loss == "siglip" and architecture.model_cfg.get("init_logit_bias") is None
    return replace(architecture, model_cfg={**architecture.model_cfg, **_SIGLIP}) if missing else architecture


def build_towers(settings: TrainedModel, encoder: OpenClipSettings, loss: str) -> Any:
    """The module with its starting weights, on the CPU, ready to be trained.

    Raises:
        ModelError: the weights cannot be read, or are those of another architecture.
        ConfigError: a tower cannot be locked as the settings say.
    """
    architecture = find_towers(encoder, loss)
    vision_cfg = {**architecture.model_cfg["vision_cfg"], "patch_dropout": settings.patch_dropout}
    patched = replace(architecture, model_cfg={**architecture.model_cfg, "vision_cfg": vision_cfg})
    model = build_model(patched, load_weights(encoder), seed=encoder.seed).train()
    lock_towers(model, settings.lock_image, settings.lock_text)
    if settings.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def input_size(architecture: Architecture) -> tuple[int, int]:
    """Height and width of the pixels, and what `decode_shard` makes."""
    size = architecture.model_cfg["vision_cfg"].get("image_size", 224)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def export_config(architecture: Architecture) -> dict[str, Any]:
    """open_clip's config of the finished model: `{model_cfg, preprocess_cfg}`."""
    whole = merge_preprocess_dict(PreprocessCfg(), dict(architecture.preprocess_cfg))
    return {
        "model_cfg": dict(architecture.model_cfg),
        "preprocess_cfg": {key: whole[key] for key in ("mean", "std", "interpolation", "resize_mode")},
    }


def pixel_reader(architecture: Architecture, device: torch.device) -> Callable[[NDArray[Any]], Tensor]:
    """A function from uint8 pixels (N, H, W, C) to what the image tower takes: float32 (N, C, H, W) on the device."""
    transform = reference_transform(architecture)
    mean = torch.tensor(transform.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(transform.std, device=device).view(-1, 1, 1)

    def read(pixels_NHWC: NDArray[Any]) -> Tensor:
        pixels = torch.tensor(pixels_NHWC).to(device)  # a copy: what lies in the object store cannot be written to
        return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255).sub_(mean).div_(std)

    return read


def forward_of(
    module: Callable[..., Any], autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[Tensor, Tensor], tuple[Pairs, Head]]:
    """The module's forward pass under a precision, with float32 unit rows whatever that is."""

    def forward(pixels: Tensor, tokens: Tensor) -> tuple[Pairs, Head]:
        with autocast():
            image, text, *head = module(pixels, tokens)
        return Pairs(image.float(), text.float()), Head(*head)

    return forward
