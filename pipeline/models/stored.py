"""Embeddings that a pool brings, as a model: there is nothing to build, and `pipeline.stream.stored` reads them."""

from typing import Any, NoReturn

from operators.encoders.base import Device
from operators.encoders.settings import StoredSettings


def check(settings: StoredSettings) -> None:
    """Which arrays there are is known to the pool alone: see `pipeline.stream.stored.stored_width`."""


def build_preprocessor(settings: StoredSettings) -> NoReturn:
    """Never called: a pool of embeddings has no images."""
    raise AssertionError("stored embeddings have no preprocessor")


def build_encoder(settings: StoredSettings, *, device: Device, threads: int) -> NoReturn:
    """Never called: a pool of embeddings is not encoded."""
    raise AssertionError("stored embeddings have no encoder")


def identity(settings: StoredSettings) -> dict[str, Any]:
    """All that an embedding depends on besides the shard: the names of the arrays."""
    return settings.model_dump(mode="json")
