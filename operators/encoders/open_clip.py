"""CLIP models of open_clip: its reference transform, tokenizers and towers, from an architecture and a state dict.

Legend: N captions, L tokens, H height, W width, C colours (RGB).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

from operators.encoders.settings import Decode
from operators.encoders.torch_encoder import Runtime, TorchEncoder, Towers, must_fit, seeded
from operators.encoders.transforms import ReferenceTransform
from operators.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """What open_clip's JSON files say about a model.

    Attributes:
        name: for messages.
        model_cfg: `embed_dim`, `vision_cfg`, `text_cfg` and switches such as `quick_gelu`.
        preprocess_cfg: what differs from open_clip's default image transform (`mean`, `std`, `interpolation`, ...).
    """

    name: str
    model_cfg: Mapping[str, Any]
    preprocess_cfg: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """Tokens of a caption."""
        return int(self.model_cfg["text_cfg"].get("context_length", DEFAULT_CONTEXT_LENGTH))

    @property
    def tokenizer_kwargs(self) -> dict[str, Any]:
        """What its tokenizer is built with."""
        return {"context_length": self.context_length, **self.model_cfg["text_cfg"].get("tokenizer_kwargs", {})}


Tokenizer = Callable[[list[str]], Tensor]
"""Captions to token ids (N, L)."""


def simple_tokenizer(architecture: Architecture) -> Tokenizer:
    """CLIP's own tokenizer, which open_clip brings along."""
    tokenizer: Tokenizer = open_clip.SimpleTokenizer(**architecture.tokenizer_kwargs)
    return tokenizer


class OpenClipPreprocessor:
    """open_clip's evaluation transform and the model's tokenizer, which is built for the first captions."""

    def __init__(
        self,
        architecture: Architecture,
        decode: Decode,
        build_tokenizer: Callable[[Architecture], Tokenizer] = simple_tokenizer,
    ) -> None:
        self._architecture = architecture
        self._build_tokenizer = build_tokenizer
        self._transform = reference_transform(architecture)
        self.draft = self._transform.resize_size if decode == "fast" else None

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(H, W, C) of the model's input size, from an image in mode RGB."""
        return self._transform.pixels(image)

    def text(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Token ids (N, L), cut or padded to the model's context length."""
        if not captions:
            return np.empty((0, self._architecture.context_length), dtype=np.int32)
        tokens_NL: Tensor = self._tokenize(list(captions))
        return tokens_NL.numpy().astype(np.int32)

    @cached_property
    def _tokenize(self) -> Tokenizer:
        return self._build_tokenizer(self._architecture)


def build_encoder(
    architecture: Architecture, state_dict: Mapping[str, Tensor] | None, runtime: Runtime, *, seed: int = 0
) -> TorchEncoder:
    """Builds both towers.

    Args:
        architecture: what to build.
        state_dict: its weights, as open_clip or OpenAI saves them; None for random ones.
        runtime: where to run.
        seed: of random weights.

    Raises:
        ModelError: the architecture is not one, or the weights are those of another.
    """
    model = build_model(architecture, state_dict, seed=seed)
    model.eval().requires_grad_(False).to(runtime.device)
    transform = reference_transform(architecture)
    dim = architecture.model_cfg["embed_dim"]
    return TorchEncoder(Towers(dim, transform.mean, transform.std, model.encode_image, model.encode_text), runtime)


def build_model(architecture: Architecture, state_dict: Mapping[str, Tensor] | None, *, seed: int = 0) -> Any:
    """open_clip's own module of both towers, on the CPU, in training mode. Arguments and errors of `build_encoder`."""
    model = _instantiate(architecture, seed)
    if state_dict is not None:
        with must_fit(architecture.name):
            _load(model, dict(state_dict))
    return model


def _instantiate(architecture: Architecture, seed: int) -> Any:
    cfg = deepcopy(dict(architecture.model_cfg))
    cfg["vision_cfg"]["timm_model_pretrained"] = False  # else building the model would download base weights
    cfg["text_cfg"]["hf_model_pretrained"] = False
    has_own_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    custom = open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP
    try:
        with seeded(seed):
            return (custom if has_own_text else open_clip.CLIP)(**cfg)
    except (TypeError, RuntimeError, ImportError) as error:
        raise ModelError(f"{architecture.name} must be a model that open_clip can build, got {error}") from error


def _load(model: Any, state: dict[str, Any]) -> None:
    """Brings weights of other makers and other input sizes into the model's own form, then loads them strictly."""
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):  # no part of an embedding; saved as a number, as a vector, or not at all
        own = getattr(model, key, None)
        if own is not None:
            state[key] = state[key].reshape(own.shape) if key in state else own.detach()
    for key in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's files hold them beside the weights
        state.pop(key, None)
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    model.load_state_dict(state, strict=True)


def reference_transform(architecture: Architecture) -> ReferenceTransform:
    """open_clip's evaluation transform for the architecture's input size."""
    size = architecture.model_cfg["vision_cfg"].get("image_size", open_clip.CLIPVisionCfg.image_size)
    cfg = merge_preprocess_dict(PreprocessCfg(), {**architecture.preprocess_cfg, "size": size})
    return ReferenceTransform(image_transform_v2(PreprocessCfg(**cfg), is_train=False))
