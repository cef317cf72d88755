"""Lists of texts beside a set: names of its classes, and templates of prompts or captions.

A file is a JSON list of texts, or holds one on each line, as DataComp's `classnames.txt` and
`zeroshot_classification_templates.txt` do. Spaces around an entry and a byte order mark are no part of it. Blank lines
at the end are no entries; one before the end is an error, as all names after it would get another number.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from operators.errors import InputError
from operators.evaluation.zero_shot import PLACEHOLDER
from pipeline.remote import read_whole


def read_classes(
    classes: Sequence[str] | str, storage: Mapping[str, Any] | None = None, key: str = "classes"
) -> tuple[str, ...]:
    """The names of the classes; their order is that of the labels. A name may come twice, as in CLIP's of ImageNet.

    Args:
        classes: the names, or where a file of them lies.
        storage: options for fsspec.
        key: of the setting, for messages about names that stand there.

    Raises:
        InputError: the file cannot be read or is not such a list, or a name is empty.
    """
    return _read(classes, "classes", storage, key)[0]


def read_templates(
    templates: Sequence[str] | str, storage: Mapping[str, Any] | None = None, key: str = "templates"
) -> tuple[str, ...]:
    """The templates, each with a place for the class. Raises InputError, as `read_classes` does."""
    texts, place = _read(templates, "templates", storage, key)
    for number, text in enumerate(texts, start=1):
        if PLACEHOLDER not in text:
            raise InputError(f"{place} must hold {PLACEHOLDER} in each template, got {text!r} as number {number}")
    return texts


def read_text(url: str, storage: Mapping[str, Any] | None = None) -> str:
    """A whole text file, without a byte order mark. Raises InputError where it cannot be read."""
    try:
        return read_whole(url, storage).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{url} must exist, got no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{url} must be UTF-8 text, got {error}") from error
    except Exception as error:  # each store has its own family of errors: protocols, credentials, folders
        raise InputError(f"{url} must be a readable file, got {type(error).__name__}: {error}") from error


def _read(
    given: Sequence[str] | str, what: str, storage: Mapping[str, Any] | None, key: str
) -> tuple[tuple[str, ...], str]:
    """The entries, and what to call the place they come from."""
    if not isinstance(given, str):
        return _checked(given, key, "place"), key
    text = read_text(given, storage)
    is_json = given.endswith(".json")
    entries: Sequence[Any] = _parse(text, given) if is_json else _lines(text)
    if not entries:
        raise InputError(f"{given} must hold at least one entry of {what}, got none")
    return _checked(entries, given, "place" if is_json else "line"), given


def _lines(text: str) -> list[str]:
    lines = io.StringIO(text, newline=None).read().split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _checked(entries: Sequence[Any], place: str, unit: str) -> tuple[str, ...]:
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str) or not entry.strip():
            raise InputError(f"{place} must hold a text in each {unit}, got {entry!r} in {unit} {number}")
    return tuple(entry.strip() for entry in entries)


def _parse(text: str, url: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{url} must be a JSON list of texts, got {error}") from error
    if not isinstance(value, list):
        raise InputError(f"{url} must be a JSON list of texts, got a {type(value).__name__}")
    return value
