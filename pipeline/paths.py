"""Paths in settings, made absolute: workers and later commands run in other folders."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel

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
