"""Paths in settings: made absolute, as workers and later commands run in other folders; and how they are opened."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field

from operators.encoders.settings import ModelSettings, PixelsSettings, StoredSettings
from pipeline.pool import SOURCE_PATHS, Source
from pipeline.storage import absolute

S = TypeVar("S", bound=BaseModel)

Storage = Annotated[dict[str, Any] | None, Field(repr=False, exclude=True)]
"""Options for fsspec to open the files that settings name; of no record, and of no address. None: see `hand_down`."""


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


def hand_down(config: S) -> S:
    """Gives settings that name files the workspace's `storage`, where these lie in the same kind of store.

    For a validator of a whole config: those that have one of their own keep it.
    """
    workspace, storage = getattr(config, "workspace"), getattr(config, "storage")  # noqa: B009 (of whatever config)
    protocol, remote, _ = workspace.partition("://")
    if remote and storage:
        below = {
            name: _opened_by(getattr(config, name), f"{protocol}://", storage) for name in type(config).model_fields
        }
        config.__dict__.update(below)
    return config


def _opened_by(value: Any, protocol: str, storage: Mapping[str, Any]) -> Any:
    if isinstance(value, BaseModel):
        own = {name: getattr(value, name) for name in type(value).model_fields}
        new = {name: _opened_by(item, protocol, storage) for name, item in own.items()}
        if own.get("storage", storage) is None and any(str(item).startswith(protocol) for item in own.values()):
            new["storage"] = storage
        changed = {name: item for name, item in new.items() if item is not own[name]}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, tuple):
        return tuple(_opened_by(item, protocol, storage) for item in value)
    if isinstance(value, dict):
        return {key: _opened_by(item, protocol, storage) for key, item in value.items()}
    return value
