"""From what a set says of its samples to numbers of classes and groups; whatever does not fit is told by its place."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from operators.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where a sample lies, for messages."""

    shard: str
    key: str

    def __str__(self) -> str:
        return f"sample {self.key} of {self.shard}"


def class_numbers(classes: Sequence[str], texts: Sequence[str | None], places: Sequence[Place]) -> list[int]:
    """The class of each sample.

    Args:
        classes: their names; a name of digits goes before the number that it shows.
        texts: JSON of a number, of digits, or of a class's name.
        places: of the samples.

    Raises:
        InputError: a label is missing, or none of the classes.
    """
    number_of = {str(number): number for number in range(len(classes))}
    number_of |= {name: number for number, name in enumerate(classes)}
    numbers = []
    for text, place in zip(texts, places, strict=True):
        value = None if text is None else json.loads(text)
        number = number_of.get(value.strip()) if isinstance(value, str) else _in_range(value, len(classes))
        if number is None:
            raise InputError(f"label of {place} must be {_allowed(classes)}, got {'none' if text is None else text}")
        numbers.append(number)
    return numbers


def distinct_labels(texts: Sequence[str | None], places: Sequence[Place]) -> list[str]:
    """The labels that there are, sorted, numbers as numbers. Raises InputError where a sample has none."""
    for text, place in zip(texts, places, strict=True):
        if text is None:
            raise InputError(f"label of {place} must be given, got none")
    found = {text for text in texts if text is not None}
    return sorted(found, key=lambda text: (0, int(text), "") if text.isdecimal() else (1, 0, text))


def numbers_among(labels: Sequence[str], texts: Sequence[str | None], places: Sequence[Place]) -> list[int]:
    """The place of each sample's label among the `distinct_labels` of another set. Raises InputError at none."""
    number_of = {label: number for number, label in enumerate(labels)}
    for text, place in zip(texts, places, strict=True):
        if text not in number_of:
            raise InputError(f"label of {place} must be one that train has, got {'none' if text is None else text}")
    return [number_of[text] for text in texts if text is not None]


def group_numbers(texts: Sequence[str | None], places: Sequence[Place]) -> list[int]:
    """The groups of the samples, numbered in the order of their sorted names. Raises InputError where one has none."""
    for text, place in zip(texts, places, strict=True):
        if text is None:
            raise InputError(f"group of {place} must be given, got none")
    names = sorted({text for text in texts if text is not None})
    number_of = {name: number for number, name in enumerate(names)}
    return [number_of[text] for text in texts if text is not None]


def _in_range(value: Any, count: int) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
    return value if is_number else None


def _allowed(classes: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in classes[:3])
    more = ", ..." if len(classes) > 3 else ""
    return f"0 to {len(classes) - 1}, or one of the {len(classes)} classes ({shown}{more})"
