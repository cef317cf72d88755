"""A config file before it is checked, and `--set` overrides on top of it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipeline.config.yaml_values import Key, KeyPath, parse_yaml


@dataclass(frozen=True)
class Document:
    """A config before it is checked.

    Attributes:
        value: mappings, lists and scalars, as they would come from JSON.
        origins: what put a key there: `curate.yaml:14` or `--set a.b=c`. The root's is the name of the file.
    """

    value: Any
    origins: dict[KeyPath, str]

    def origin(self, path: KeyPath) -> str:
        """The place of a key, or of its nearest parent when the key is not there."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def label(self, path: KeyPath) -> str:
        """The dotted key, list items by name; a step stands for itself: `prune.keep_fraction`."""
        parts: list[str] = []
        here = self.value
        for key in path:
            here = child(here, key)
            name = item_name(here) if isinstance(key, int) else None
            if name is None:
                parts.append(str(key))
            elif "step" in here:
                parts = [name]
            else:
                parts.append(name)
        return ".".join(parts)


def child(value: Any, key: Key) -> Any:
    """What lies under a key or an index; None when nothing does."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return None


def item_name(item: Any) -> str | None:
    """What a list item is called: its `name`, or else its `step`."""
    name = (item.get("name") or item.get("step")) if isinstance(item, dict) else None
    return name if isinstance(name, str) else None


def read_document(path: str) -> Document:
    """Reads one YAML file.

    Raises:
        ConfigError: no such file, not UTF-8, not YAML, or a duplicate key; with line and column where there is one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"the config file must exist, got {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file must be readable text in UTF-8, got {path} ({error})") from error
    return Document(*parse_yaml(text, path, lambda mark: f"{path}:{mark.line + 1}"))


def override(document: Document, assignment: str) -> Document:
    """A copy of the document with one `--set` applied.

    Args:
        document: stays as it is.
        assignment: `steps.prune.keep_fraction=0.3`. A list item is addressed by index, by `name`, or else by `step`.
            The value is YAML. Mappings on the way are created.

    Raises:
        ConfigError: no `=`, no such list item, or a key below a scalar.
    """
    dotted, equals, text = assignment.partition("=")
    keys = dotted.strip().split(".")
    shown = assignment
    if "storage" in keys:  # it may be a credential
        shown = f"{dotted.strip()}=..." if equals else "storage..."
    source = f"--set {shown}"
    if not equals or not all(keys):
        raise ConfigError(f"--set must be of the form key.key=value, got {shown!r}")
    new = Document(*parse_yaml(text, source, lambda _: source))

    value = {} if document.value is None else copy.deepcopy(document.value)
    here: Any = value
    path: KeyPath = ()
    for key in keys[:-1]:
        step = _resolve(here, key, keys[: len(path)], source)
        if child(here, step) is None:
            here[step] = {}
        here = here[step]
        path = (*path, step)
    step = _resolve(here, keys[-1], keys[:-1], source)
    here[step] = new.value
    path = (*path, step)

    kept = {other: origin for other, origin in document.origins.items() if other[: len(path)] != path}
    created = {path[:depth]: source for depth in range(1, len(path)) if path[:depth] not in kept}
    replaced = {path + below: source for below in new.origins}
    return Document(value, {**kept, **created, **replaced})


def _shown(value: Any, path: Sequence[str]) -> str:
    return "a word" if "storage" in path else repr(value)  # it may be a credential


def _resolve(container: Any, key: str, above: list[str], source: str) -> Key:
    """The key or index that one part of a dotted key stands for."""
    if isinstance(container, dict):
        return key
    where = ".".join(above) or "the config"
    if not isinstance(container, list):
        raise ConfigError(
            f"{where} must be a mapping or a list to hold {key!r}, got {_shown(container, above)} ({source})"
        )
    if key.isdecimal() and int(key) < len(container):
        return int(key)
    names = [item_name(item) for item in container]
    if names.count(key) == 1:
        return names.index(key)
    if key in names:
        raise ConfigError(f"{where}.{key} must name one item, got {names.count(key)}; use its index ({source})")
    known = ", ".join(name or str(index) for index, name in enumerate(names)) or "none"
    raise ConfigError(f"{where}.{key} must name an item of {where} (there: {known}) ({source})")
