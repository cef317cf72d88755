"""What a config may name when its job runs on another machine, and what of it must not travel.

A place that a job writes to, and a pool, must be known to every node: a URL, or a path on a disk that they share. A
small file, such as a list of uids or the towers of a model, may also lie in the working folder that travels.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from operators.errors import ConfigError
from pipeline.config.document import Document
from pipeline.config.loader import canonical
from pipeline.config.yaml_values import KeyPath
from pipeline.pool import SOURCE_PATHS
from pipeline.record import publishable
from pipeline.submission.package import user_files

_STAYS = {*SOURCE_PATHS, "workspace", "output"}
"""Keys of what is too large to travel, or is written."""


def check_portable(config: BaseModel, document: Document, working_dir: Path | None) -> list[str]:
    """Checks that what a config names will be found on a cluster, as far as that can be known here.

    Args:
        config: of a command, checked by its model.
        document: what it was read from.
        working_dir: the folder that travels; paths that are relative count from it.

    Returns:
        the keys of paths that are absolute and local: right where the nodes share a disk, or have it in their image.

    Raises:
        ConfigError: a relative path, or a module of this folder, that does not travel.
    """
    resolved = getattr(config, "resolved")()  # noqa: B009 (of whatever config)
    absolute = dict(leaves(canonical(resolved)))
    sent = {name for name, _ in user_files(working_dir)} if working_dir else set()
    local = []
    for path, value in leaves(canonical(config)):
        if path[-1] == "function":
            _check_module(document, path, str(value), working_dir)
        elif isinstance(value, str) and value.startswith("/"):
            local.append(document.label(path))
        elif absolute.get(path, value) != value:
            _check_travels(document, path, str(value), sent)
    return local


def without_credentials(document: Document) -> tuple[Any, list[str]]:
    """A config's value without what may be a credential, and the keys that were left out."""
    value = publishable(document.value)
    there = dict(leaves(value))
    left_out = [path for path, item in leaves(document.value) if there.get(path) != item]
    return value, [document.label(path) for path in left_out]


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """The scalars in a value as it would come from JSON, and where each lies."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def _check_travels(document: Document, path: KeyPath, value: str, sent: Collection[str]) -> None:
    where = f"{document.label(path)} must be"
    got = f"got {value} ({document.origin(path)})"
    if path[-1] in _STAYS:
        raise ConfigError(f"{where} a URL, or an absolute path that all nodes of the cluster share, {got}")
    name = os.path.normpath(value)
    if not any(file == name or file.startswith(f"{name}/") for file in sent):
        raise ConfigError(
            f"{where} a URL, an absolute path on the nodes, or a path within --working-dir, {got}; what is hidden "
            "there, and folders behind links, stay here"
        )


def _check_module(document: Document, path: KeyPath, function: str, working_dir: Path | None) -> None:
    """A module that is found in neither folder is taken to be installed on the cluster."""
    name = function.partition(":")[0].partition(".")[0]
    if _holds(Path.cwd(), name) and not (working_dir and _holds(working_dir, name)):
        raise ConfigError(
            f"{document.label(path)} must be in a module that the cluster has, got {function}, of the folder "
            f"{Path.cwd()} ({document.origin(path)}): --working-dir names the folder that travels"
        )


def _holds(folder: Path, module: str) -> bool:
    return (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()
