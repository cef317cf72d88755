"""A config file and its `--set` overrides, checked: the one way from YAML to settings."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from operators.errors import ConfigError
from pipeline.config.document import Document, override, read_document
from pipeline.config.problems import explain

M = TypeVar("M", bound=BaseModel)


def load_config(path: str, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Reads, overrides and checks a config.

    Args:
        path: a YAML file, read as UTF-8.
        model: the settings it must hold.
        overrides: `a.b=c`, applied in order. The value is YAML; list items are addressed by index, `name` or `step`.

    Raises:
        ConfigError: everything that is wrong, a line for each problem: key, rule, value got, file and line.
    """
    return check_document(load_document(path, overrides), model)


def load_document(path: str, overrides: Sequence[str] = ()) -> Document:
    """Reads and overrides a config, unchecked. Raises ConfigError."""
    document = read_document(path)
    for assignment in overrides:
        document = override(document, assignment)
    return document


def check_document(document: Document, model: type[M]) -> M:
    """The settings that a document holds. Raises ConfigError as `load_config` does."""
    try:
        return model.model_validate({} if document.value is None else document.value)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, document))) from error


def canonical(model: BaseModel) -> dict[str, Any]:
    """The settings as sorted JSON-able values: equal settings give equal bytes under `json.dumps`.

    Defaults are included, sets are sorted, and the fields of subclasses count even where a base class is declared.
    """
    plain: dict[str, Any] = _plain(model.model_dump(mode="python", serialize_as_any=True))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return to_jsonable_python(value)
