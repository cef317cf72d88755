"""What pydantic found wrong with a config, one line for each problem: key, rule, value got, place.

    prune.keep_fraction must be in (0, 1], got 1.5 (curate.yaml:14)
    rules.min_sid is not a known key, did you mean min_side? Known here: max_aspect, min_side, step (curate.yaml:9)

A validator of a settings model raises `ValueError("must be a power of two, got 7")`, which is shown after its key,
or `KeyProblem(path, rule)` when the fault lies under another key than the one that it validates.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.document import Document, child
from pipeline.config.schema_walk import SchemaWalk
from pipeline.config.yaml_values import KeyPath


class KeyProblem(ValueError):
    """Raised inside a validator to blame a key at or below the validated value.

    Attributes:
        path: the key's path, from the validated value: `("steps", 3, "model")`.
        rule: what must hold, with the value got: `must be one of clip, dino, got 'clop'`.
    """

    def __init__(self, path: KeyPath, rule: str) -> None:
        super().__init__(path, rule)
        self.path = path
        self.rule = rule


_KINDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "frozen_set": "a list",
    "int": "a whole number",
    "list": "a list",
    "mapping": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "path": "a path",
    "set": "a list",
    "string": "text",
    "tuple": "a list",
}
"""Pydantic's `<kind>_type`, `<kind>_parsing` and `<kind>_from_...` errors."""

_RULES = {
    "finite_number": "must be a finite number",
    "missing": "must be given",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
}

_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def explain(error: ValidationError, model: type[BaseModel], document: Document) -> list[str]:
    """The problems in the order of the model's fields, each a line.

    Args:
        error: raised by `model` on `document.value`.
        model: the config model; its schema gives the allowed keys, the bounds and the names of choices.
        document: gives lines, names of list items and the values as the user wrote them.
    """
    walk = SchemaWalk(model)
    found: dict[KeyPath, list[str]] = {}
    for detail in _flatten(error):
        path, rule = _problem(detail, walk, document.value)
        found.setdefault(path, []).append(rule)
    # A union reports one problem for each of its members: what fails deepest is the member that was meant.
    paths = [
        path for path in found if not any(len(other) > len(path) and other[: len(path)] == path for other in found)
    ]
    return [_line(path, _join(found[path]), document) for path in paths]


def _flatten(error: ValidationError, above: tuple[int | str, ...] = ()) -> Iterator[ErrorDetails]:
    """The details of an error, with those of models that a validator built inside it."""
    for detail in error.errors(include_url=False):
        location = above + detail["loc"]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            yield from _flatten(cause, location)
        else:
            yield {**detail, "loc": location}


def _line(path: KeyPath, rule: str, document: Document) -> str:
    if "storage" in path:
        rule = rule.partition(", got ")[0]  # it may be a credential
    return f"{document.label(path) or 'the config'} {rule} ({document.origin(path)})"


def _join(rules: list[str]) -> str:
    """One rule out of those of a union's members: `must be a whole number or text, got [1]`."""
    if len(rules) == 1:
        return rules[0]
    wants, gots = zip(*(rule.partition(", got ")[::2] for rule in rules), strict=True)
    choices = " or ".join(dict.fromkeys(want.removeprefix("must be ") for want in wants))
    return f"must be {choices}" + (f", got {gots[0]}" if gots[0] else "")


def _problem(detail: ErrorDetails, walk: SchemaWalk, data: Any) -> tuple[KeyPath, str]:
    """The key to blame and the rule that it broke."""
    kind = detail["type"]
    context = detail.get("ctx", {})
    path, schema = walk.locate(detail["loc"], data)
    value = detail["input"]

    if kind == "extra_forbidden":
        return path, _unknown_key(str(path[-1]), walk.keys_beside(detail["loc"], data))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = context["discriminator"].strip("'")
        tags = [str(tag) for tag in schema.get("choices", ())]
        got = child(value, key)
        return (*path, key), "must be given: one of " + ", ".join(tags) if got is None else _one_of(tags, got)
    if kind in ("literal_error", "enum"):
        choices = schema.get("expected") or [member.value for member in schema.get("members", ())]
        return path, _one_of(choices, value) if choices else f"must be {context['expected']}{_got(value)}"
    if kind in ("value_error", "assertion_error"):
        cause = context["error"]
        if isinstance(cause, KeyProblem):
            return (*path, *cause.path), cause.rule
        text = str(cause)
        if not text.startswith("must "):
            return path, f"is wrong: {text}"
        return path, text if ", got " in text or isinstance(value, dict | list) else text + _got(value)
    if kind == "missing":
        return path, _RULES[kind]
    if kind in _RULES:
        return path, _RULES[kind].format(**context) + _got(value)
    if kind in _BOUNDS:
        return path, f"must be {_interval({**context, **schema})}{_got(value)}"
    for name in _KINDS:
        if kind.startswith((f"{name}_type", f"{name}_parsing", f"{name}_from")):
            bounds = _interval(schema) if name in ("int", "float") else ""
            return path, f"must be {_KINDS[name]} {bounds}".rstrip() + _got(value)
    message = detail["msg"].replace("Input should ", "must ", 1)
    return path, (message if message.startswith("must ") else f"is wrong: {message}") + _got(value)


def _interval(schema: dict[str, Any]) -> str:
    """The bounds of a number in words: `in (0, 1]`, `at least 1`; empty when there are none."""
    low = schema.get("gt", schema.get("ge"))
    high = schema.get("lt", schema.get("le"))
    if low is not None and high is not None:
        return f"in {'(' if 'gt' in schema else '['}{low}, {high}{')' if 'lt' in schema else ']'}"
    if low is not None:
        return f"{'greater than' if 'gt' in schema else 'at least'} {low}"
    if high is not None:
        return f"{'less than' if 'lt' in schema else 'at most'} {high}"
    return ""


def _unknown_key(key: str, known: Iterable[str]) -> str:
    keys = sorted(known)
    hint = f", did you mean {close[0]}?" if (close := difflib.get_close_matches(key, keys, 1)) else "."
    return f"is not a known key{hint} Known here: {', '.join(keys)}" if keys else "is not a known key"


def _one_of(choices: Iterable[Any], value: Any) -> str:
    words = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(value), words, 1)
    hint = f", did you mean {close[0]}?" if close else ""
    return f"must be {'one of ' if len(words) > 1 else ''}{', '.join(words)}{_got(value)}{hint}"


def _got(value: Any) -> str:
    """The value as the user would write it, shortened."""
    match value:
        case None | True | False:
            text = {None: "null", True: "true", False: "false"}[value]
        case dict():
            text = "a mapping"
        case list():
            text = "a list" if value else "an empty list"
        case _:
            text = repr(value)
    return f", got {text if len(text) <= 100 else text[:97] + '...'}"
