"""From what a set says of its samples to numbers of classes and groups; whatever does not fit is told by its place."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from operators.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where a sample lies, and the setting and field in which it says something, for messages."""

    shard: str
    key: str
    field: str

    def __str__(self) -> str:
        return f"sample {self.key} of {self.shard} ({self.field})"


@dataclass(frozen=True)
class ClassNames:
    """The classes that labels are read by: numbers, digits, or names.

    Attributes:
        names: in the order of their numbers. One that comes twice is no label, as nobody can tell which it means.
    """

    names: tuple[str, ...]

    def number(self, value: Any, place: object) -> int:
        """The number of the class that a label means.

        Args:
            value: a number, digits, or the name of a class; a name of digits goes before the number that it shows.
            place: of the sample, for messages.

        Raises:
            InputError: it means none of the classes, or more than one.
        """
        name = value.strip() if isinstance(value, str) else None
        if name in self._twice:
            raise InputError(f"label of {place} must be a number, as the list of classes has {name!r} twice")
        number = self._in_range(value) if name is None else self._number_of.get(name)
        if number is None:
            got = "none" if value is None else json.dumps(value, ensure_ascii=False)
            raise InputError(f"label of {place} must be {self._allowed}, got {got}")
        return number

    @cached_property
    def _number_of(self) -> dict[str, int]:
        number_of = {str(number): number for number in range(len(self.names))}
        return number_of | {name: number for number, name in enumerate(self.names)}

    @cached_property
    def _twice(self) -> frozenset[str]:
        return frozenset(name for name, times in Counter(self.names).items() if times > 1)

    def _in_range(self, value: Any) -> int | None:
        is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.names)
        return value if is_number else None

    @property
    def _allowed(self) -> str:
        shown = ", ".join(repr(name) for name in self.names[:3])
        more = ", ..." if len(self.names) > 3 else ""
        return f"0 to {len(self.names) - 1}, or one of the {len(self.names)} classes ({shown}{more})"


def class_numbers(classes: Sequence[str], texts: Sequence[str | None], places: Sequence[Place]) -> list[int]:
    """The class of each sample.

    Args:
        classes: their names.
        texts: JSON of what `ClassNames.number` takes.
        places: of the samples.

    Raises:
        InputError: a label is missing, or none of the classes.
    """
    names = ClassNames(tuple(classes))
    return [
        names.number(None if text is None else json.loads(text), place)
        for text, place in zip(texts, places, strict=True)
    ]


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
