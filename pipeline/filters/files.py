"""A trained filter as a file: safetensors whose metadata says what it is, so that any later run can use it.

The metadata holds one entry, `winnow_filter`, the JSON of the facts: `format`, `kind` (of the step that trained it),
`settings` (what it takes to use it), `training` (numbers about how it came to be) and `seal`, a digest of all that and
of the tensors. Nothing is ever unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from operators.errors import InputError
from pipeline.remote import read_whole

FORMAT = "winnow-filter-1"
_KEY = "winnow_filter"
_LENGTH_BYTES = 8

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TrainedFilter:
    """The content of such a file.

    Attributes:
        place: where it lies, for people.
        data: the file's bytes.
        tensors: by name.
        kind: of the step that trained it.
        settings: what it takes to use it.
        training: numbers about how it came to be.
    """

    place: str
    data: bytes
    tensors: Tensors
    kind: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """Names the content."""
        return hashlib.sha256(self.data).hexdigest()


def filter_bytes(kind: str, tensors: Tensors, settings: Mapping[str, Any], training: Mapping[str, Any]) -> bytes:
    """A trained filter as the bytes of its file: equal filters give equal bytes."""
    facts = {"format": FORMAT, "kind": kind, "settings": settings, "training": training}
    whole = {name: np.array(array, order="C") for name, array in sorted(tensors.items())}
    return bytes(save(whole, {_KEY: json.dumps({**facts, "seal": _seal(facts, whole)}, sort_keys=True)}))


def parse_filter(data: bytes, place: str, kind: str | None = None) -> TrainedFilter:
    """The filter in a file.

    Args:
        data: the file's bytes.
        place: where it lies, for messages.
        kind: that it must be of; None allows any.

    Raises:
        InputError: it is no trained filter, or one of another kind.
    """
    rule = f"{place} must be a trained filter of kind {kind or 'any'}"
    try:
        tensors = load(data)
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        facts = json.loads(header["__metadata__"][_KEY])
        version, found, settings, training = (facts[name] for name in ("format", "kind", "settings", "training"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{rule}, got {type(error).__name__}: {error}") from error
    seal = facts.pop("seal", None)  # none in files of older versions
    if seal and seal != _seal(facts, tensors):
        raise InputError(f"{rule}, got a damaged one, whose content is not what was written: remove it")
    if (version, found) != (FORMAT, kind or found):
        raise InputError(f"{rule} and of format {FORMAT}, got {found} of {version}")
    if not isinstance(settings, dict) or not isinstance(training, dict):
        raise InputError(f"{rule}, whose settings and training are mappings, got {settings!r} and {training!r}")
    return TrainedFilter(place, data, tensors, found, settings, training)


def read_filter(url: str, kind: str, storage: Mapping[str, Any] | None = None) -> TrainedFilter:
    """The filter at a path or URL. Raises InputError as `parse_filter` does, and where it cannot be read."""
    try:
        data = read_whole(url, storage)
    except Exception as error:  # each store has its own family of errors
        raise InputError(f"{url} must be a readable file, got {type(error).__name__}: {error}") from error
    return parse_filter(data, url, kind)


def _seal(facts: Mapping[str, Any], tensors: Tensors) -> str:
    hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        hasher.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()
