r"""The pool: what the config says of the input, and the shards that are really there.

A shard's name is its path relative to its source's root, with `/`; names, not places, identify samples. The listing is
sorted by name, so nothing that follows can depend on the order in which a store lists. A file system may hold names
that are not UTF-8: as names and keys they are text, with `\xe9` for such a byte; as places they stay what they are.
"""

import difflib
import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from operators.errors import ConfigError, InputError

Format = Literal["webdataset", "parquet", "images", "idx"]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})

_OWN_KEYS: dict[str, Format] = {
    "image_column": "parquet",
    "path_column": "parquet",
    "text_column": "parquet",
    "uid_column": "parquet",
    "key_column": "parquet",
    "text_field": "webdataset",
    "shard_size": "images",
    "labels_path": "idx",
}
"""Keys that mean something for one format only."""

_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "images": tuple(sorted(f".{extension}" for extension in IMAGE_EXTENSIONS)),
    "idx": ("ubyte", "ubyte.gz", ".idx", ".idx.gz"),
}
"""What counts as input in a folder. A glob of tars or tables takes whatever it matches."""

_WILDCARD = re.compile(r"[*?\[]")
_PASSWORD = re.compile(r"://[^/:]*:[^/]*@")
_LABELS = "labels"


class Source(BaseModel):
    """One set of shards of one format.

    Attributes:
        format: webdataset | parquet | images | idx.
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
        shard_size: images in one shard of an image folder.
        labels_path: the labels of an IDX file. Default: its name with `labels` for `images` and `idx1` for `idx3`.
        storage: options for fsspec, such as `endpoint_url`, `anon` or `profile`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    shard_size: int = Field(default=1000, ge=1)
    labels_path: str | None = None
    storage: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"name must be made of letters, digits, '.', '-' and '_', got {name!r}")
        return name

    @field_validator("path", "root", "labels_path")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and names_password(url):
            raise ValueError(f"must hold no password (it would be recorded), got one for {url.rpartition('@')[2]}")
        return url

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        for key, owner in _OWN_KEYS.items():
            if self.format != owner and getattr(self, key) != Source.model_fields[key].default:
                raise ValueError(f"{key} must be used with format {owner}, got format {self.format}")
        if self.image_column and self.path_column:
            raise ValueError(
                f"image_column and path_column must not both be given, got {self.image_column} and {self.path_column}"
            )
        return self

    @property
    def needs_text(self) -> bool:
        """Whether a sample without text is rejected."""
        if self.require_text is not None:
            return self.require_text
        return self.format == "webdataset" or self.text_column is not None


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

    model_config = ConfigDict(frozen=True, extra="forbid")

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
            relative to `url`; the labels of an IDX file, a URL.
    """

    name: str
    url: str
    source: int
    size: int
    fingerprint: str
    files: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a listing: the store's path, the path relative to the root, bytes, and what changes with content."""

    path: str
    relative: str
    size: int
    stamp: str


def list_shards(pool: Pool) -> list[Shard]:
    """Every shard of the pool, sorted by name.

    Raises:
        InputError: a path does not exist, matches nothing or cannot be listed.
        ConfigError: a root is not above its path, or two shards share a name.
    """
    shards: dict[str, Shard] = {}
    for index, source in enumerate(pool.sources):
        for shard in _list_source(source, index):
            other = shards.setdefault(shard.name, shard)
            if other is not shard:
                raise ConfigError(
                    f"shard names must be unique in the pool, got {shard.name!r} from {other.url} and {shard.url}: "
                    "give each source a name"
                )
    return sorted(shards.values(), key=lambda shard: shard.name)


def check_source(source: Source, shards: Sequence[Shard]) -> None:
    """Refuses, by the schema of its first readable shard, a source that cannot be what the config says it is.

    A damaged shard proves nothing, so it is passed over: the limit on damaged shards deals with it.

    Raises:
        ConfigError: a named column or label file does not exist, or the shard is of another format.
        InputError: a Parquet table without images.
    """
    from pipeline.readers import check_shard  # the readers import this module

    for shard in shards[:4]:
        if check_shard(source, shard):
            return


def locate_root(source: Source) -> tuple[Any, str]:
    """The file system of a source, and its root folder there, without a slash at the end."""
    fs, path = fsspec.core.url_to_fs(source.path, **source.storage)
    if source.root is not None:
        root = fsspec.core.url_to_fs(source.root, **source.storage)[1]
    elif fs.isdir(path):
        root = path
    else:
        wildcard = _WILDCARD.search(path)
        root = path[: wildcard.start()] if wildcard and not fs.exists(path) else path
        root = root.rpartition("/")[0]
    return fs, root.rstrip("/")


def names_password(url: str) -> bool:
    """Whether a URL holds a user's password, as in `ftp://user:password@host`."""
    return _PASSWORD.search(url) is not None


def printable(path: str) -> str:
    r"""A path as text that can be stored: bytes that are not UTF-8 become `\xe9`, as in a tar."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _list_source(source: Source, index: int) -> Iterator[Shard]:
    fs, root = _reach(source)
    files = _find_files(source, fs, root)
    if not files:
        raise InputError(f"pool path must hold at least one {source.format} file, got none at {source.path}")
    prefix = f"{source.name}/" if source.name else ""
    if source.format == "images":
        for number, start in enumerate(range(0, len(files), source.shard_size)):
            part = files[start : start + source.shard_size]
            places = [(file.relative, file.size) for file in part]
            yield _make_shard(f"{prefix}images-{number:05d}", _url(fs, root), index, part, places)
        return
    for file in files:
        labels = _find_labels(source, fs, file) if source.format == "idx" else []
        places = [(_url(fs, labels_file.path), labels_file.size) for labels_file in labels]
        yield _make_shard(prefix + printable(file.relative), _url(fs, file.path), index, [file, *labels], places)


def _make_shard(name: str, url: str, source: int, files: Sequence[_File], places: Sequence[tuple[str, int]]) -> Shard:
    size = sum(file.size for file in files)
    identity = "\0".join([name, *(f"{file.relative}\0{file.size}\0{file.stamp}" for file in files)])
    fingerprint = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return Shard(name, url, source, size, fingerprint, tuple(places))


def _reach(source: Source) -> tuple[Any, str]:
    try:
        fs, root = locate_root(source)
        fs.invalidate_cache()
        return fs, root
    except (ImportError, ValueError) as error:
        raise ConfigError(f"pool path must have a protocol that fsspec can open, got {source.path}: {error}") from error
    except Exception as error:
        raise _unreachable(source, error) from error


def _unreachable(source: Source, error: Exception) -> InputError:
    return InputError(f"pool path must be reachable, got {source.path}: {type(error).__name__}: {error}")


def _find_files(source: Source, fs: Any, root: str) -> list[_File]:
    """The files of a source, sorted by relative path; hidden ones are left out."""
    path = fsspec.core.url_to_fs(source.path, **source.storage)[1]
    try:
        if fs.isfile(path):
            found, is_exact = {path: fs.info(path)}, True
        elif fs.isdir(path):
            found, is_exact = fs.find(path, detail=True), False
        elif _WILDCARD.search(path):
            found, is_exact = fs.glob(path, detail=True), source.format in ("webdataset", "parquet")
        else:
            raise InputError(f"pool path must exist, got {source.path}")
    except InputError:
        raise
    except Exception as error:
        raise _unreachable(source, error) from error
    files = []
    for place, info in found.items():
        if info["type"] != "file" or not (is_exact or place.lower().endswith(_SUFFIXES[source.format])):
            continue
        if not place.startswith(f"{root}/"):
            raise ConfigError(f"root must be a folder above path, got root {source.root} and path {source.path}")
        relative = place[len(root) + 1 :]
        is_labels = source.format == "idx" and not is_exact and _LABELS in posixpath.basename(place)
        if not is_labels and not any(part.startswith(".") for part in relative.split("/")):
            files.append(_File(place, relative, info["size"] or 0, _stamp(info)))
    return sorted(files, key=lambda file: file.relative)


def _find_labels(source: Source, fs: Any, images: _File) -> list[_File]:
    """The labels of an IDX file: none when no path was given and none lie beside it."""
    if source.labels_path is None:
        folder, _, base = images.path.rpartition("/")
        path = f"{folder}/{base.replace('images', _LABELS).replace('idx3', 'idx1')}"
        if path == images.path or not fs.isfile(path):
            return []
    else:
        path = fsspec.core.url_to_fs(source.labels_path, **source.storage)[1]
        if not fs.isfile(path):
            raise InputError(f"labels_path must be a file, got {source.labels_path}")
    info = fs.info(path)
    return [_File(path, posixpath.basename(path), info["size"], _stamp(info))]


def _stamp(info: Mapping[str, Any]) -> str:
    """What a store changes when it changes a file: the ETag, else the time of modification."""
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""


def _url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))
