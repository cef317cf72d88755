"""Which column of a Parquet table plays which part: named in the config, else found by the names in use."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from operators.errors import ConfigError, InputError
from pipeline.pool import Source, suggest
from pipeline.readers.sample import MAX_NESTING

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
TEXT_COLUMNS = ("text", "caption")
UID_COLUMNS = ("uid",)
URL_COLUMNS = ("url", "URL", "image_url")


@dataclass(frozen=True, slots=True)
class Columns:
    """The column of each part, None where there is none. Either `image` or `path` is given where there are images.

    Attributes:
        image: encoded images: binary, or HuggingFace's struct of `bytes` and `path`.
        path: image paths.
        text: captions.
        uid: supplied uids.
        key: sample keys, unique in the shard.
        metadata: every other column that JSON can hold.
    """

    image: str | None
    path: str | None
    text: str | None
    uid: str | None
    key: str | None
    metadata: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        """Every column that must be read."""
        parts = (self.image, self.path, self.text, self.uid, self.key)
        return [*(name for name in parts if name is not None), *self.metadata]


def resolve_columns(schema: Any, source: Source, url: str) -> Columns:
    """Finds the columns of a table. Those of types that run code count as not there: see `runs_code`.

    Args:
        schema: the table's Arrow schema.
        source: names the columns, or leaves them to be found.
        url: the table, for messages.

    Raises:
        ConfigError: a named column does not exist, or cannot play its part.
        InputError: there are no images.
    """
    times = Counter(schema.names)
    fields = {field.name: field.type for field in schema if times[field.name] == 1 and not runs_code(field.type)}

    def find(key: str, fits: Callable[[Any], bool], defaults: tuple[str, ...] = ()) -> str | None:
        name: str | None = getattr(source, key)
        if name is None:
            return next((name for name in defaults if name in fields and fits(fields[name])), None)
        if name not in fields:
            known = ", ".join(fields)
            raise ConfigError(f"{key} must be a column of {url} ({known}), got {name!r}{suggest(name, fields)}")
        if not fits(fields[name]):
            raise ConfigError(f"{key} must be a column of a fitting type in {url}, got {name!r} of type {fields[name]}")
        return name

    path = find("path_column", is_text)
    image = find("image_column", holds_images, IMAGE_COLUMNS) if path is None and source.has_images else None
    text = find("text_column", is_text, TEXT_COLUMNS)
    uid = find("uid_column", is_text, UID_COLUMNS)
    key = find("key_column", is_key)
    if image is None and path is None and source.has_images:
        raise _no_images(fields, url)
    parts = {image, path, text, uid, key}
    metadata = tuple(name for name, kind in fields.items() if name not in parts and fits_json(kind))
    return Columns(image, path, text, uid, key, metadata)


def _no_images(fields: dict[str, Any], url: str) -> InputError:
    known = ", ".join(fields)
    if any(name in fields for name in URL_COLUMNS):
        return InputError(f"{url} is a metadata table without image bytes: download it first with img2dataset")
    return InputError(f"{url} must have a column of image bytes, got {known}: name one as image_column or path_column")


def is_text(kind: Any) -> bool:
    """Whether a type holds strings."""
    kind = _plain(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_key(kind: Any) -> bool:
    """Whether a type can name samples."""
    return is_text(kind) or bool(pa.types.is_integer(kind))


def is_bytes(kind: Any) -> bool:
    """Whether a type holds byte strings."""
    kind = _plain(kind)
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


def holds_images(kind: Any) -> bool:
    """Whether a type holds byte strings, or structs with a field `bytes` that does."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_bytes(kind.field(index).type)
    return is_bytes(kind)


def fits_json(kind: Any, max_levels: int = MAX_NESTING) -> bool:
    """Whether no byte string lies anywhere in a type, and it is nested in no more levels than that."""
    fields = [kind.field(index).type for index in range(kind.num_fields)]
    if is_bytes(kind) or (fields and max_levels == 0):
        return False
    return all(fits_json(field, max_levels - 1) for field in fields)


def runs_code(kind: Any, max_levels: int = MAX_NESTING) -> bool:
    """Whether a type lies in a type, down to so many levels, of which a Python library says what its cells become.

    Ray's own, `arrow_pickled_object`, unpickles them, and so would run whatever code a file brings.
    """
    kind = _plain(kind)
    if isinstance(kind, pa.ExtensionType):
        return True
    inner = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    fields = [inner.field(index).type for index in range(inner.num_fields)]
    return bool(fields and max_levels == 0) or any(runs_code(field, max_levels - 1) for field in fields)


def _plain(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
