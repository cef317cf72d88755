"""The pool: what the config says of the input. `pipeline.listing` finds the shards that are really there.

A shard's name is its path relative to its source's root, with `/`; names, not places, identify samples.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Format = Literal["webdataset", "parquet", "images", "idx", "clip_retrieval", "datacomp", "semdedup"]

EMBEDDING_FORMATS: frozenset[Format] = frozenset({"clip_retrieval", "datacomp", "semdedup"})
"""Formats whose samples come as embeddings and metadata, without images."""

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})

_TABLES: tuple[Format, ...] = ("parquet", "clip_retrieval", "datacomp")
_OWN_KEYS: dict[str, tuple[Format, ...]] = {
    "image_column": ("parquet",),
    "path_column": ("parquet",),
    "text_column": _TABLES,
    "uid_column": _TABLES,
    "key_column": _TABLES,
    "text_field": ("webdataset",),
    "shard_size": ("images", "semdedup"),
    "labels_path": ("idx",),
    "embeddings_path": ("semdedup",),
    "paths_path": ("semdedup",),
    "dim": ("semdedup",),
    "dtype": ("semdedup",),
    "path_bytes": ("semdedup",),
}
"""Keys that mean something for some formats only."""

SOURCE_PATHS = ("path", "root", "labels_path", "embeddings_path", "paths_path")
"""The settings of a source that say where something lies."""

_PASSWORD = re.compile(
    r"://[^/:]*:[^/]*@|[?&](?:x-amz-(?:signature|credential|security-token)|signature|sig|token)=", re.IGNORECASE
)


class Source(BaseModel):
    """One set of shards of one format.

    Attributes:
        format: webdataset | parquet | images | idx, or of embeddings: clip_retrieval | datacomp | semdedup.
        path: a file, a folder (read through all its folders) or a glob; local, `s3://` or whatever fsspec opens.
        name: prefix of the shard names, needed only where two sources hold shards of the same name.
        root: the folder that shard names are relative to. Default: the folder before the first wildcard.
        weight: how often the source is drawn in training, relative to the others.
        require_text: reject samples without text. Default: true for webdataset and where `text_column` is named.
        image_column: Parquet column of encoded images (binary, or HuggingFace's struct of bytes and path).
        path_column: Parquet column of image paths, relative to the Parquet file's folder and below `root`. The images
            count as immutable: another image under an old path is noticed only when the Parquet file changes, too.
        text_column: Parquet column of captions. Default: `text`, else `caption`, where there is one.
        uid_column: Parquet column of uids. Default: `uid` where there is one.
        key_column: Parquet column of unique sample keys. Default: the row number.
        text_field: field of the JSON member that holds the caption where a sample has no `.txt`.
        shard_size: images in one shard of an image folder (default 1,000); rows in one of a SemDeDup array (100,000).
        labels_path: the labels of an IDX file. Default: its name with `labels` for `images` and `idx1` for `idx3`.
        embeddings_path: the array that the rows of SemDeDup's sorted clusters point into. Default: `embeddings.npy`
            above them, where there is one.
        paths_path: the array of the paths of a SemDeDup array. Default: `paths.npy` beside it, where there is one.
        dim: columns of a SemDeDup array that is a bare memory map; a `.npy` says so itself.
        dtype: of its numbers.
        path_bytes: bytes of each path where the paths are a bare memory map.
        storage: options for fsspec, such as `endpoint_url`, `anon` or `profile`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Format
    path: str = Field(min_length=1)
    name: str | None = None
    root: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    require_text: bool | None = None
    image_column: str | None = None
    path_column: str | None = None
    text_column: str | None = None
    uid_column: str | None = None
    key_column: str | None = None
    text_field: str | None = None
    shard_size: int | None = Field(default=None, ge=1)
    labels_path: str | None = None
    embeddings_path: str | None = None
    paths_path: str | None = None
    dim: int | None = Field(default=None, ge=1)
    dtype: Literal["float16", "float32", "float64"] = "float32"
    path_bytes: int | None = Field(default=None, ge=1)
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"name must be made of letters, digits, '.', '-' and '_', got {name!r}")
        return name

    @field_validator(*SOURCE_PATHS)
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and names_password(url):
            raise ValueError(f"must hold no password (it would be recorded), got one for {url.rpartition('@')[2]}")
        return url

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        for key, owners in _OWN_KEYS.items():
            if self.format not in owners and getattr(self, key) != Source.model_fields[key].default:
                raise ValueError(f"{key} must be used with format {' or '.join(owners)}, got format {self.format}")
        if self.image_column and self.path_column:
            raise ValueError(
                f"image_column and path_column must not both be given, got {self.image_column} and {self.path_column}"
            )
        return self

    @property
    def has_images(self) -> bool:
        """Whether its samples are images; otherwise they are embeddings and metadata."""
        return self.format not in EMBEDDING_FORMATS

    @property
    def needs_text(self) -> bool:
        """Whether a sample without text is rejected."""
        if self.require_text is not None:
            return self.require_text
        return self.format == "webdataset" or self.text_column is not None

    @property
    def without_text(self) -> Self:
        """The same where text is of no use: none is asked for, unless the config does so."""
        # Only where it changes anything: otherwise what was read before is found again.
        needless = self.require_text is None and self.needs_text
        return self.model_copy(update={"require_text": False}) if needless else self


class Pool(BaseModel):
    """The input and its limits. In a config, a single source's keys may stand inline instead of in `sources`.

    Attributes:
        sources: never empty; inline keys arrive here as `sources[0]`.
        max_pixels: a larger image is rejected by its header, before decoding.
        max_member_bytes: a larger file inside a shard is rejected unread.
        max_reject_fraction: share of all samples that may be rejected before the run stops.
        max_shard_reject_fraction: the same for each shard.
        max_damaged_fraction: share of shards that may be damaged; one always may.
        chunk_samples: samples that travel together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    sources: tuple[Source, ...]
    max_pixels: int = Field(default=100_000_000, ge=1)
    max_member_bytes: int = Field(default=64 * 2**20, ge=1)
    max_reject_fraction: float = Field(default=0.05, ge=0, le=1)
    max_shard_reject_fraction: float = Field(default=1.0, ge=0, le=1)
    max_damaged_fraction: float = Field(default=0.01, ge=0, le=1)
    chunk_samples: int = Field(default=128, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _gather_inline(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        inline = {key: value for key, value in data.items() if key not in cls.model_fields}
        if not inline and "sources" in data:
            return data
        own = [key for key in inline if key in Source.model_fields]
        if "sources" in data:
            if not own:
                return data  # an unknown key, which `extra` reports better
            raise ValueError(f"sources must not be mixed with the keys of a single source, got also {', '.join(own)}")
        return {key: value for key, value in data.items() if key in cls.model_fields} | {"sources": [inline]}

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        # Not `min_length`: pydantic would count a source with a problem of its own as missing, too.
        if not sources:
            raise ValueError("must have at least one source")
        return sources

    @property
    def without_text(self) -> Self:
        """The same with its sources `without_text`."""
        return self.model_copy(update={"sources": tuple(source.without_text for source in self.sources)})


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of input that is listed, read and cached.

    Attributes:
        name: unique in the pool; with `/`.
        url: where it lies: a local path or a URL; for image folders the root folder.
        source: index into `Pool.sources`.
        size: bytes.
        fingerprint: 16 hexadecimal digits that change when name, size, ETag or modification time do.
        files: place and bytes of the files behind it where it is more than `url`: the slice of an image folder,
            relative to `url`; the labels of an IDX file, a URL; the arrays beside a table, URLs.
        rows: the slice [start, stop) of an array's rows that the shard is; None where it is all of its file.
    """

    name: str
    url: str
    source: int
    size: int
    fingerprint: str
    files: tuple[tuple[str, int], ...] = ()
    rows: tuple[int, int] | None = None


def names_password(url: str) -> bool:
    """Whether a URL holds a user's password, as in `ftp://user:password@host`, or is signed for its bearer."""
    return _PASSWORD.search(url) is not None


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
