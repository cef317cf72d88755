"""Lists that a task needs besides its images: names of classes, and templates of prompts.

A file is a JSON list of texts, or holds one on each line, as DataComp's `classnames.txt` and
`zeroshot_classification_templates.txt` do. Blank lines at its end are no entries.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from operators.errors import InputError
from operators.evaluation.zero_shot import PLACEHOLDER
from pipeline.remote import read_whole


def read_classes(classes: Sequence[str] | str, storage: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The names of the classes; their order is that of the labels.

    Args:
        classes: the names, or where a file of them lies.
        storage: options for fsspec.

    Raises:
        InputError: the file is not there or not such a list, or a name is given twice or is empty.
    """
    names, place = _read(classes, "classes", storage)
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise InputError(f"{place} must name each class once, got {twice[0]!r} twice")
    return names


def read_templates(templates: Sequence[str] | str, storage: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The templates of the prompts, each with a place for the class. Raises InputError, as `read_classes` does."""
    texts, place = _read(templates, "templates", storage)
    for number, text in enumerate(texts, start=1):
        if PLACEHOLDER not in text:
            raise InputError(f"{place} must hold {PLACEHOLDER} in each template, got {text!r} as number {number}")
    return texts


def read_text(url: str, storage: Mapping[str, Any] | None = None) -> str:
    """A whole text file. Raises InputError where it cannot be read."""
    try:
        return read_whole(url, storage).decode()
    except FileNotFoundError as error:
        raise InputError(f"{url} must exist, got no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{url} must be UTF-8 text, got {error}") from error


def _read(given: Sequence[str] | str, what: str, storage: Mapping[str, Any] | None) -> tuple[tuple[str, ...], str]:
    """The entries, and what to call the place they come from."""
    if not isinstance(given, str):
        return tuple(given), what
    text = read_text(given, storage)
    entries: Any = _parse(text, given) if given.endswith(".json") else text.rstrip("\r\n").splitlines()
    if not entries:
        raise InputError(f"{given} must hold at least one entry of {what}, got none")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str) or not entry.strip():
            raise InputError(f"{given} must hold a text in each place, got {entry!r} in place {number}")
    return tuple(entry.strip() for entry in entries), given


def _parse(text: str, url: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{url} must be a JSON list of texts, got {error}") from error
    if not isinstance(value, list):
        raise InputError(f"{url} must be a JSON list of texts, got a {type(value).__name__}")
    return value
