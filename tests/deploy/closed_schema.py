"""JSON schemas that refuse what they do not know.

The API server drops an unknown field of a custom resource without a word, and so does its schema: a `terminationGrace`
that should have been `terminationGracePeriodSeconds` is found when the first spot node goes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

METADATA = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in ("name", "generateName", "namespace")},
        **{name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("labels", "annotations")},
    },
}
"""Of an object, as far as a manifest writes it. The schemas of custom resources leave it open."""


def close(schema: Any) -> Any:
    """The same schema, in which objects with known properties have no others."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    open_on_purpose = schema.get("additionalProperties") or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), Mapping) and not open_on_purpose:
        closed["additionalProperties"] = False
    return closed


def misspelt(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """A document with one key misspelt, for each of its keys, and where that is."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            for where, changed in misspelt(item, (*path, index)):
                yield where, [*value[:index], changed, *value[index + 1 :]]
    elif isinstance(value, Mapping):
        for key, item in value.items():
            where = ".".join(map(str, (*path, key)))
            yield where, {other if other != key else f"{key}x": each for other, each in value.items()}
            for below, changed in misspelt(item, (*path, key)):
                yield below, {**value, key: changed}
