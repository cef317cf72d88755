"""Pixels as a model: nothing to find, nothing to read."""

from typing import Any

from operators.encoders.base import Device
from operators.encoders.pixels import PixelsEncoder, PixelsPreprocessor
from operators.encoders.settings import PixelsSettings


def check(settings: PixelsSettings) -> None:
    """Whatever the settings accept can be built."""


def build_preprocessor(settings: PixelsSettings) -> PixelsPreprocessor:
    """The half without weights."""
    return PixelsPreprocessor(settings)


def build_encoder(settings: PixelsSettings, *, device: Device, threads: int) -> PixelsEncoder:
    """The other half. It flattens with numpy on the CPU, whatever the device."""
    return PixelsEncoder(settings)


def identity(settings: PixelsSettings) -> dict[str, Any]:
    """All that an embedding depends on."""
    return settings.model_dump(mode="json")
