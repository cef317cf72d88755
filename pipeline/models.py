"""From the `models:` section of a config to the two halves of a model.

`check_model` is cheap and comes before any work; `build_preprocessor` runs where images are decoded and reads no
weights; `build_encoder` reads them; `model_identity` is what artifacts are addressed by.
"""

import difflib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip
import timm
from open_clip.pretrained import download_pretrained_from_hf
from timm.models import load_state_dict_from_hf

from operators.encoders import open_clip as clip_encoder
from operators.encoders import timm as timm_encoder
from operators.encoders.base import Device, Encoder, Preprocessor, choose_runtime, no_text_tower
from operators.encoders.open_clip import Architecture, OpenClipPreprocessor
from operators.encoders.pixels import PixelsEncoder, PixelsPreprocessor
from operators.encoders.settings import ModelSettings, OpenClipSettings, PixelsSettings, TimmSettings
from operators.encoders.timm import TimmPreprocessor
from operators.errors import ModelError
from pipeline import weights as weight_files

_HUB_PREFIX = "hf-hub:"
_log = logging.getLogger(__name__)


def check_model(settings: ModelSettings, *, text: bool = False) -> None:
    """Everything that can be known without loading weights: names, files and their headers, towers.

    Args:
        settings: the model.
        text: whether it will be asked to embed captions.

    Raises:
        ModelError: what is wrong and what is allowed.
    """
    if text and not isinstance(settings, OpenClipSettings):
        raise no_text_tower()
    build_preprocessor(settings)
    if not isinstance(settings, PixelsSettings) and _weights_kind(settings) == "file":
        weight_files.check_header(weight_files.find_weights(settings.weights))


def build_preprocessor(settings: ModelSettings) -> Preprocessor:
    """The half without weights."""
    match settings:
        case OpenClipSettings():
            return OpenClipPreprocessor(_architecture(settings), settings.decode)
        case TimmSettings():
            _check_name(settings.name.partition(".")[0], timm.list_models())
            return TimmPreprocessor(settings)
        case PixelsSettings():
            return PixelsPreprocessor(settings)


def build_encoder(settings: ModelSettings, *, device: Device = "auto", threads: int = 1) -> Encoder:
    """The half with weights, ready to run.

    Args:
        settings: the model.
        device: `auto` takes a CUDA device where there is one.
        threads: of this process, for every forward pass on a CPU.

    Raises:
        ModelError: the weights cannot be read, or are those of another architecture.
    """
    if isinstance(settings, PixelsSettings):
        return PixelsEncoder(settings)
    runtime = choose_runtime(settings.precision, settings.batch_size, device, threads)
    state_dict = load_weights(settings)
    if isinstance(settings, TimmSettings):
        return timm_encoder.build_encoder(settings, state_dict, runtime)
    return clip_encoder.build_encoder(_architecture(settings), state_dict, runtime, seed=settings.seed)


def load_weights(settings: OpenClipSettings | TimmSettings) -> dict[str, Tensor] | None:
    """The state dict that the settings name, None for random weights. Remote files are downloaded once, then cached.

    Raises:
        ModelError: there is none, it cannot be reached, or it is not plain tensors.
    """
    kind = _weights_kind(settings)
    if kind == "random":
        return None
    if kind == "file":
        file = weight_files.find_weights(settings.weights)
        weight_files.check_header(file)
        return weight_files.read_state_dict(weight_files.local_copy(file))
    try:
        if isinstance(settings, TimmSettings):
            return dict(load_state_dict_from_hf(timm.get_pretrained_cfg(settings.name).hf_hub_id))
        if kind == "hub":
            path = download_pretrained_from_hf(settings.name.removeprefix(_HUB_PREFIX))
        else:
            path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(settings.name, settings.weights))
    except Exception as error:  # each library and each hub has its own family of errors
        raise ModelError(_unreachable(settings, error)) from error
    return weight_files.read_state_dict(Path(path))


def model_identity(settings: ModelSettings) -> str:
    """A string that changes whenever an embedding could: canonical JSON, with files named by content, not by path."""
    identity = settings.model_dump(mode="json")
    if not isinstance(settings, PixelsSettings):
        kind = _weights_kind(settings)
        if kind == "file":
            identity["weights"] = weight_files.fingerprint(weight_files.find_weights(settings.weights))
        if kind != "random":
            del identity["seed"]
    if isinstance(settings, OpenClipSettings):
        architecture = _architecture(settings)
        identity["name"] = {"model": architecture.model_cfg, "preprocess": architecture.preprocess_cfg}
        del identity["preprocess"]
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))


def _weights_kind(settings: OpenClipSettings | TimmSettings) -> str:
    """`random`, `hub`, `tag` or `file`."""
    is_clip = isinstance(settings, OpenClipSettings)
    if is_clip and settings.name.startswith(_HUB_PREFIX) != (settings.weights == "hub"):
        message = f"weights must be hub exactly where name starts with {_HUB_PREFIX}"
        raise ModelError(f"{message}, got {settings.weights!r} and {settings.name!r}")
    if settings.weights in ("random", "hub"):
        return settings.weights
    return "tag" if is_clip and open_clip.is_pretrained_cfg(settings.name, settings.weights) else "file"


def _architecture(settings: OpenClipSettings) -> Architecture:
    """What the name says, unless the weights are an export folder that says it itself; then `preprocess` on top."""
    kind = _weights_kind(settings)
    tag = open_clip.get_pretrained_cfg(settings.name, settings.weights) if kind == "tag" else {}
    config = _named_config(settings, kind)
    exported = weight_files.find_weights(settings.weights).config if kind == "file" else None
    weights_cfg = tag if exported is None else _checked(exported, settings.weights)["model_cfg"]
    if weights_cfg.get("quick_gelu") and not config["model_cfg"].get("quick_gelu"):
        message = f"name must be {settings.name}-quickgelu for weights {settings.weights!r}, got {settings.name!r}"
        raise ModelError(f"{message}: they were trained with QuickGELU")
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


def _named_config(settings: OpenClipSettings, kind: str) -> dict[str, Any]:
    """An open_clip config, `{model_cfg, preprocess_cfg}`, from the library, a JSON file or the hub."""
    name = settings.name
    if kind == "hub":
        try:
            path = download_pretrained_from_hf(name.removeprefix(_HUB_PREFIX), filename=weight_files.CONFIG_NAME)
        except Exception as error:
            raise ModelError(_unreachable(settings, error)) from error
        return _checked(weight_files.read_json(path), name)
    if name.endswith(".json"):
        return _checked(weight_files.read_json(name), name)
    _check_name(name, open_clip.list_models())
    config = {"model_cfg": open_clip.get_model_config(name)}
    looks_quick = any(maker in settings.weights.lower() for maker in ("dfn", "openai"))
    if kind == "file" and looks_quick and not config["model_cfg"].get("quick_gelu"):
        _log.warning("weights %s look like OpenAI's or DFN's, which need %s-quickgelu", settings.weights, name)
    return config


def _checked(config: Any, source: str) -> dict[str, Any]:
    """Accepts both of open_clip's forms: a bare model config, and one beside its image transform."""
    whole: dict[str, Any] = config if isinstance(config, dict) and "model_cfg" in config else {"model_cfg": config}
    keys = whole["model_cfg"] if isinstance(whole["model_cfg"], dict) else {}
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= keys.keys():
        raise ModelError(f"model config must have embed_dim, vision_cfg and text_cfg, got {sorted(keys)} in {source}")
    return whole


def _check_name(name: str, known: Iterable[str]) -> None:
    known = set(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise ModelError(f"name must be a model that the library knows, got {name!r}{hint}")


def _unreachable(settings: OpenClipSettings | TimmSettings, error: Exception) -> str:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"weights {settings.weights!r} of {settings.name} must be downloadable, or be a local path; got {first_line}"
