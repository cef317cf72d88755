"""Class-labelled sets as pairs: names and templates from the config or from files, and labels read by them.

All of it by the rules of `pipeline.labels`, as in an evaluation.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.labels.fields import read_members
from pipeline.labels.lists import read_classes, read_templates
from pipeline.labels.numbers import ClassNames
from pipeline.pool import Pool, Shard
from pipeline.training.settings import PLACE, Captions


@dataclass(frozen=True)
class Labels:
    """How a sample's class becomes its caption.

    Attributes:
        field: that holds the class: of the metadata, or a member as in `pipeline.labels.fields`.
        classes: names by number.
        templates: with `{c}` for the name.
    """

    field: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]

    def numbers(
        self, pool: Pool, shard: Shard, rows: Sequence[int], metadata: Sequence[str | None]
    ) -> list[int | None]:
        """The numbers of the classes of some samples; None for one that has none.

        Where the field is a member, this takes a pass over the shard.

        Args:
            pool: limits and sources.
            shard: of the pool.
            rows: of the shard.
            metadata: of these, as JSON.

        Raises:
            InputError: a sample has a class that the list does not know.
        """
        members = read_members(pool, shard, [self.field], rows).get(self.field, {})
        values = [members.get(row, _value(text, self.field)) for row, text in zip(rows, metadata, strict=True)]
        return [self._number(value, shard, row) for row, value in zip(rows, values, strict=True)]

    def sentences(self) -> list[str]:
        """Every caption there can be: those of the first template for all classes, then the second's, ..."""
        return [template.replace(PLACE, name) for template in self.templates for name in self.classes]

    def _number(self, value: Any, shard: Shard, row: int) -> int | None:
        place = f"row {row} of {shard.name} (captions.field {self.field})"
        return None if value is None else self._names.number(value, place)

    @cached_property
    def _names(self) -> ClassNames:
        return ClassNames(self.classes)


def read_labels(captions: Captions) -> Labels:
    """The labels that a config describes.

    Raises:
        InputError: a file cannot be read, or does not hold what it should.
    """
    classes = read_classes(captions.classes, captions.storage, key="captions.classes")
    templates = read_templates(captions.templates, captions.storage, key="captions.templates")
    return Labels(captions.field, classes, templates)


def _value(metadata: str | None, field: str) -> Any:
    return json.loads(metadata).get(field) if metadata else None
