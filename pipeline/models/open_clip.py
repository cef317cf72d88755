"""Models of open_clip: an architecture by name, JSON file, export folder or hub, and weights from as many places."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import HFTokenizer

from operators.encoders import open_clip as towers
from operators.encoders.base import Device
from operators.encoders.open_clip import Architecture, OpenClipPreprocessor, Tokenizer, simple_tokenizer
from operators.encoders.settings import OpenClipSettings
from operators.encoders.torch_encoder import TorchEncoder, choose_runtime
from operators.errors import ModelError
from pipeline import weights as weight_files
from pipeline.models.weighted import Origin, check_file, check_name, downloading, identity_of, origin_of, read_file

_HUB_PREFIX = "hf-hub:"
_SIZES = {
    "vision_cfg": (open_clip.CLIPVisionCfg(), ("timm_model_name", "layers", "width", "patch_size", "image_size")),
    "text_cfg": (open_clip.CLIPTextCfg(), ("hf_model_name", "layers", "width", "heads", "context_length")),
}
"""Settings of which no two may differ for towers to be the same, beside open_clip's defaults."""
_log = logging.getLogger(__name__)


def check(settings: OpenClipSettings) -> None:
    """Raises ModelError where the name, the architecture or the weight file cannot be."""
    build_preprocessor(settings)
    if _origin(settings) == "file":
        check_file(settings)


def build_preprocessor(settings: OpenClipSettings) -> OpenClipPreprocessor:
    """The half without weights."""
    return OpenClipPreprocessor(find_architecture(settings), settings.decode, build_tokenizer)


def build_tokenizer(architecture: Architecture) -> Tokenizer:
    """The tokenizer that an architecture names, from the hub, or else CLIP's own.

    Raises:
        ModelError: it cannot be had.
    """
    text_cfg = architecture.model_cfg["text_cfg"]
    hub_name = text_cfg.get("hf_tokenizer_name")
    if not hub_name:
        return simple_tokenizer(architecture)
    try:
        mode = text_cfg.get("tokenizer_mode")
        tokenizer: Tokenizer = HFTokenizer(hub_name, tokenizer_mode=mode, **architecture.tokenizer_kwargs)
    except (ImportError, OSError) as error:
        message = f"tokenizer {hub_name} of {architecture.name} must be installed or downloadable, got {error}"
        raise ModelError(message) from error
    return tokenizer


def build_encoder(settings: OpenClipSettings, *, device: Device, threads: int) -> TorchEncoder:
    """The half with weights."""
    runtime = choose_runtime(settings.precision, settings.batch_size, device, threads)
    return towers.build_encoder(find_architecture(settings), load_weights(settings), runtime, seed=settings.seed)


def load_weights(settings: OpenClipSettings) -> dict[str, Tensor] | None:
    """The state dict that the settings name, None for random weights.

    Raises:
        ModelError: there is none, it cannot be reached, or it is not plain tensors.
    """
    origin = _origin(settings)
    if origin == "random":
        return None
    if origin == "file":
        return read_file(settings)
    with downloading(settings):
        if origin == "hub":
            path = download_pretrained_from_hf(settings.name.removeprefix(_HUB_PREFIX))
        else:
            path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(settings.name, settings.weights))
    return weight_files.read_state_dict(Path(path))


def identity(settings: OpenClipSettings) -> dict[str, Any]:
    """All that an embedding depends on: the architecture is named by what it says, not by where it was found."""
    found = identity_of(settings, _origin(settings))
    architecture = find_architecture(settings)
    found["name"] = {"model": architecture.model_cfg, "preprocess": architecture.preprocess_cfg}
    del found["preprocess"]
    return found


def _origin(settings: OpenClipSettings) -> Origin:
    if settings.name.startswith(_HUB_PREFIX) != (settings.weights == "hub"):
        message = f"weights must be hub exactly where name starts with {_HUB_PREFIX}"
        raise ModelError(f"{message}, got {settings.weights!r} and {settings.name!r}")
    return origin_of(settings.weights, is_tag=open_clip.is_pretrained_cfg(settings.name, settings.weights))


def find_architecture(settings: OpenClipSettings) -> Architecture:
    """What the name says; an export folder of weights says it itself, and its transform, too; then `preprocess` on top.

    Raises:
        ModelError: there is no such architecture, or it is not that of the export folder.
    """
    origin = _origin(settings)
    tag = open_clip.get_pretrained_cfg(settings.name, settings.weights) if origin == "tag" else {}
    config = _named_config(settings, origin)
    exported = weight_files.find_weights(settings.weights, settings.storage).config if origin == "file" else None
    weights_cfg = tag if exported is None else _checked(exported, settings.weights)["model_cfg"]
    if weights_cfg.get("quick_gelu") and not config["model_cfg"].get("quick_gelu"):
        message = f"name must be {settings.name}-quickgelu for weights {settings.weights!r}, got {settings.name!r}"
        raise ModelError(f"{message}: they were trained with QuickGELU")
    if exported is not None:
        _check_named(settings, config["model_cfg"], weights_cfg)
    config = exported or config
    return Architecture(
        name=settings.name,
        model_cfg=config["model_cfg"],
        preprocess_cfg={
            **config.get("preprocess_cfg", {}),
            **{key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag},
            **settings.preprocess.model_dump(exclude_none=True),
        },
    )


def _named_config(settings: OpenClipSettings, origin: Origin) -> dict[str, Any]:
    """An open_clip config, `{model_cfg, preprocess_cfg}`, from the library, a JSON file or the hub."""
    name = settings.name
    if origin == "hub":
        with downloading(settings):
            path = download_pretrained_from_hf(name.removeprefix(_HUB_PREFIX), filename=weight_files.CONFIG_NAME)
        return _checked(weight_files.read_json(path), name)
    if name.endswith(".json"):
        return _checked(weight_files.read_json(name, settings.storage), name)
    check_name(name, open_clip.list_models())
    config = {"model_cfg": open_clip.get_model_config(name)}
    looks_quick = any(maker in settings.weights.lower() for maker in ("dfn", "openai"))
    if origin == "file" and looks_quick and not config["model_cfg"].get("quick_gelu"):
        _log.warning("weights %s look like OpenAI's or DFN's, which need %s-quickgelu", settings.weights, name)
    return config


def _check_named(settings: OpenClipSettings, named: Mapping[str, Any], exported: Mapping[str, Any]) -> None:
    """Raises ModelError where the name asks for other towers than an export folder holds."""
    ours, theirs = _sizes(named), _sizes(exported)
    differing = [f"{key} {ours[key]} for {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if differing:
        own = f"{settings.weights.rstrip('/')}/{weight_files.CONFIG_NAME}"
        raise ModelError(
            f"name must be the architecture of the weights in {settings.weights}, such as {own}, got {settings.name}, "
            f"which has {', '.join(differing)}"
        )


def _sizes(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the towers of a config ones of their own, with open_clip's defaults."""
    found = {"embed_dim": model_cfg["embed_dim"]}
    for part, (defaults, keys) in _SIZES.items():
        whole = {**vars(defaults), **model_cfg[part]}
        found |= {f"{part}.{key}": whole[key] for key in keys}
    return found


def _checked(config: Any, source: str) -> dict[str, Any]:
    """Accepts both of open_clip's forms: a bare model config, and one beside its image transform."""
    whole: dict[str, Any] = config if isinstance(config, dict) and "model_cfg" in config else {"model_cfg": config}
    keys = whole["model_cfg"] if isinstance(whole["model_cfg"], dict) else {}
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= keys.keys():
        raise ModelError(f"model config must have embed_dim, vision_cfg and text_cfg, got {sorted(keys)} in {source}")
    return whole
