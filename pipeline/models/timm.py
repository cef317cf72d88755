"""Models of timm: a name that it knows, and weights from a file, the hub or a generator."""

from typing import Any

from torch import Tensor

from operators import torchvision_ops  # noqa: F401

# isort: split
import timm
from timm.models import load_state_dict_from_hf

from operators.encoders import timm as towers
from operators.encoders.base import Device
from operators.encoders.settings import TimmSettings
from operators.encoders.timm import TimmPreprocessor
from operators.encoders.torch_encoder import TorchEncoder, choose_runtime
from pipeline.models.weighted import check_file, check_name, downloading, identity_of, origin_of, read_file


def check(settings: TimmSettings) -> None:
    """Raises ModelError where the name or the weight file cannot be."""
    build_preprocessor(settings)
    if origin_of(settings.weights) == "file":
        check_file(settings)


def build_preprocessor(settings: TimmSettings) -> TimmPreprocessor:
    """The half without weights."""
    check_name(settings.name.partition(".")[0], timm.list_models())
    return TimmPreprocessor(settings)


def build_encoder(settings: TimmSettings, *, device: Device, threads: int) -> TorchEncoder:
    """The half with weights."""
    runtime = choose_runtime(settings.precision, settings.batch_size, device, threads)
    return towers.build_encoder(settings, load_weights(settings), runtime)


def load_weights(settings: TimmSettings) -> dict[str, Tensor] | None:
    """The state dict that the settings name, None for random weights.

    Raises:
        ModelError: there is none, it cannot be reached, or it is not plain tensors.
    """
    origin = origin_of(settings.weights)
    if origin == "random":
        return None
    if origin == "file":
        return read_file(settings)
    with downloading(settings):
        return dict(load_state_dict_from_hf(timm.get_pretrained_cfg(settings.name).hf_hub_id, weights_only=True))


def identity(settings: TimmSettings) -> dict[str, Any]:
    """All that an embedding depends on."""
    return identity_of(settings, origin_of(settings.weights))
