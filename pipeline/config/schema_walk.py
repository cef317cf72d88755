"""From the location of a pydantic error to the key in the user's file.

Pydantic's locations also name the members of unions (`steps.3.prune.keep_fraction` for a step whose tag is `prune`),
which the user never wrote. The model's core schema tells which parts are keys.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from pipeline.config.document import child
from pipeline.config.yaml_values import KeyPath

Schema = dict[str, Any]
"""A pydantic core schema; `{}` where it is not known."""


class SchemaWalk:
    """Follows error locations through one model."""

    def __init__(self, model: type[BaseModel]) -> None:
        """Reads the core schema of a config model."""
        self._definitions: dict[str, Schema] = {}
        self._root = self._unwrap(dict(model.__pydantic_core_schema__))

    def locate(self, location: tuple[int | str, ...], data: Any) -> tuple[KeyPath, Schema]:
        """The path of keys and indices in `data`, and the schema of the value there.

        Args:
            location: `loc` of a pydantic error.
            data: what the user wrote. Parts that it does not hold are left out, such as those that a validator put
                in (`sources.0` for the only source of a pool) or that it reports when it builds a model by itself.
        """
        path: KeyPath = ()
        schema = self._root
        for depth, part in enumerate(location):
            is_last = depth == len(location) - 1
            schema, is_key = self._step(schema, part)
            if is_key and (is_last or child(data, part) is not None):
                path = (*path, part)
                data = child(data, part)
        return path, schema

    def keys_beside(self, location: tuple[int | str, ...], data: Any) -> Iterable[str]:
        """The keys that are allowed next to an unknown one."""
        _, schema = self.locate(location[:-1], data)
        return schema.get("fields", {}).keys() if isinstance(schema.get("fields"), dict) else ()

    def _step(self, schema: Schema, part: int | str) -> tuple[Schema, bool]:
        """The schema below one part of a location, and whether that part is a key rather than a member of a union."""
        kind = schema.get("type")
        if kind == "tagged-union":
            return self._unwrap(schema["choices"].get(part, {})), False
        if kind == "union":
            members = [self._unwrap(choice[0] if isinstance(choice, tuple) else choice) for choice in schema["choices"]]
            return next((member for member in members if _label(member) == part), {}), False
        if kind in ("model-fields", "typed-dict"):
            return self._unwrap(schema["fields"].get(part, {})), True
        if kind == "dict":
            return self._unwrap(schema.get("values_schema", {})), part != "[key]"
        if kind == "tuple" and isinstance(part, int):
            items = schema["items_schema"]
            return self._unwrap(items[min(part, len(items) - 1)] if items else {}), True
        if kind in ("list", "set", "frozenset"):
            return self._unwrap(schema.get("items_schema", {})), True
        return {}, True

    def _unwrap(self, schema: Schema) -> Schema:
        """The schema inside the wrappers that leave no trace in a location."""
        while True:
            kind = schema.get("type")
            if kind == "definitions":
                self._definitions.update({item["ref"]: item for item in schema["definitions"]})
                schema = schema["schema"]
            elif kind == "definition-ref":
                schema = self._definitions[schema["schema_ref"]]
            elif kind == "lax-or-strict":
                schema = schema["lax_schema"]
            elif kind == "json-or-python":
                schema = schema["python_schema"]
            elif kind == "model":
                schema = {**self._unwrap(schema["schema"]), "label": schema["cls"].__name__}
            elif isinstance(schema.get("schema"), dict):
                schema = schema["schema"]
            else:
                return schema


def _label(schema: Schema) -> str:
    """How pydantic names this member of a union in a location."""
    return str(schema.get("label", schema.get("type")))
