"""Class-labelled sets as pairs: names and templates from the config or from files, and labels read by them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operators.errors import InputError
from pipeline.remote import read_whole
from pipeline.training.settings import PLACE, Captions


@dataclass(frozen=True)
class Labels:
    """How a sample's class becomes its caption.

    Attributes:
        field: of the metadata.
        classes: names by number.
        templates: with `{c}` for the name.
    """

    field: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]

    def number(self, metadata: Mapping[str, Any] | None) -> int | None:
        """The number of a sample's class; None when it has none.

        Raises:
            InputError: it has one that the list of classes does not know.
        """
        value = (metadata or {}).get(self.field)
        if value is None:
            return None
        if isinstance(value, str) and value in self.classes:
            return self.classes.index(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.classes):
            return value
        rule = f"the names or the numbers 0 to {len(self.classes) - 1} of the {len(self.classes)} classes"
        raise InputError(f"captions.classes must list every class: field {self.field} must hold {rule}, got {value!r}")

    def sentences(self) -> list[str]:
        """Every caption there can be: those of the first template for all classes, then the second's, ..."""
        return [template.replace(PLACE, name) for template in self.templates for name in self.classes]


def read_labels(captions: Captions) -> Labels:
    """The labels that a config describes.

    Raises:
        InputError: a file is missing, or does not hold what it should.
    """
    classes = _read(captions.classes, "captions.classes")
    templates = _read(captions.templates, "captions.templates")
    if len(set(classes)) != len(classes):
        twice = next(name for i, name in enumerate(classes) if name in classes[:i])
        raise InputError(f"captions.classes must all be different, got {twice!r} twice")
    for template in templates:
        if PLACE not in template:
            raise InputError(f"captions.templates must hold {PLACE} for the class, got {template!r}")
    return Labels(captions.field, classes, templates)


def _read(value: tuple[str, ...] | str, key: str) -> tuple[str, ...]:
    if not isinstance(value, str):
        return value
    try:
        text = read_whole(value).decode("utf-8-sig")
        lines = json.loads(text) if value.endswith(".json") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{key} must be a list, or a readable file of one, got {value} ({error})") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise InputError(f"{key} must be a JSON list of names, got {value}")
    found = tuple(line for line in lines if line)
    if not found:
        raise InputError(f"{key} must hold at least one line, got none in {value}")
    return found
