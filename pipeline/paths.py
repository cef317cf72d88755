"""Paths in settings, made absolute: workers and later commands run in other folders."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel

from operators.encoders.settings import ModelSettings, PixelsSettings, StoredSettings
from pipeline.pool import SOURCE_PATHS, Source
from pipeline.storage import absolute

S = TypeVar("S", bound=BaseModel)


def resolve(settings: S, names: Sequence[str]) -> S:
    """The settings with the paths among `names` that are given made absolute."""
    given = {name: path for name in names if (path := getattr(settings, name))}
    return settings.model_copy(update={name: absolute(path) for name, path in given.items()})


def resolve_source(source: Source) -> Source:
    """A source with its paths made absolute."""
    return resolve(source, SOURCE_PATHS)


def resolve_model(model: ModelSettings) -> ModelSettings:
    """`hub`, `random` and tags are words without a dot or a slash; a folder of such a name can be written `./name`."""
    if isinstance(model, PixelsSettings | StoredSettings):
        return model
    names = ["weights"] if "." in model.weights or "/" in model.weights else []
    return resolve(model, [*names, "name"] if model.name.endswith(".json") else names)
