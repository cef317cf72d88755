r"""Listing a pool: the shards that are really there.

The listing is sorted by name, so nothing that follows can depend on the order in which a store lists. A file system may
hold names that are not UTF-8: as names and keys they are text, with `\xe9` for such a byte; as places they stay what
they are. Arrays that lie beside a table are found by `pipeline.array_files`.
"""

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from operators.errors import ConfigError, InputError
from pipeline.array_files import EMBEDDINGS, PATHS, is_sorted_cluster, pair
from pipeline.pool import IMAGE_EXTENSIONS, Format, Pool, Shard, Source
from pipeline.remote import is_s3, open_location, retry, version_of

_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "images": tuple(sorted(f".{extension}" for extension in IMAGE_EXTENSIONS)),
    "idx": ("ubyte", "ubyte.gz", ".idx", ".idx.gz"),
    "clip_retrieval": (".parquet", ".npy"),
    "datacomp": (".parquet", ".npz"),
    "semdedup": (".npy",),
}
"""What counts as input in a folder. A glob of tars or tables takes whatever it matches."""

_WILDCARD = re.compile(r"[*?\[]")
_LABELS = "labels"
_TABLE = ".parquet"

IMAGES_PER_SHARD = 1_000
ROWS_PER_SHARD = 100_000


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
    fs, path = open_location(source.path, source.storage)
    if source.root is not None:
        root = open_location(source.root, source.storage)[1]
    elif kind_of(fs, path) == "directory":
        root = path
    else:
        wildcard = _WILDCARD.search(path)
        root = path[: wildcard.start()] if wildcard and kind_of(fs, path) is None else path
        root = root.rpartition("/")[0]
    return fs, root.rstrip("/")


def printable(path: str) -> str:
    r"""A path as text that can be stored: bytes that are not UTF-8 become `\xe9`, as in a tar."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def kind_of(fs: Any, path: str) -> str | None:
    """`file`, `directory` or None: by one small request, where to ask a store for a directory would list all of it."""
    if isinstance(fs, LocalFileSystem) or "/" not in path.strip("/"):
        return "file" if fs.isfile(path) else "directory" if fs.isdir(path) else None
    try:
        return str(retry(lambda: fs.info(path))["type"])
    except FileNotFoundError:
        return None


def _glob(fs: Any, path: str) -> dict[str, Any]:
    """What a pattern matches. Across folders of S3 by one listing of all below, not by one for each folder."""
    wildcard = _WILDCARD.search(path)
    assert wildcard is not None
    root, _, stem = path[: wildcard.start()].rpartition("/")
    across = "/" in path[wildcard.start() :] and "**" not in path
    if not (is_s3(fs) and across and ("/" in root or stem)):  # all of a bucket may be far more than the pool
        found: dict[str, Any] = fs.glob(path, detail=True)
        return found
    matches = re.compile(glob_translate(path)).match
    return {place: info for place, info in fs.find(root, detail=True, prefix=stem).items() if matches(place)}


def _list_source(source: Source, index: int) -> Iterator[Shard]:
    fs, root = _reach(source)
    files = _find_files(source, fs, root)
    if not files:
        raise InputError(f"pool path must hold at least one {source.format} file, got none at {source.path}")
    prefix = f"{source.name}/" if source.name else ""
    if source.format == "images":
        size = source.shard_size or IMAGES_PER_SHARD
        for number, start in enumerate(range(0, len(files), size)):
            part = files[start : start + size]
            places = [(file.relative, file.size) for file in part]
            yield _make_shard(f"{prefix}images-{number:05d}", _url(fs, root), index, part, places)
        return
    for file, *beside in _group(source, fs, root, files):
        name = prefix + printable(file.relative)
        places = [(_url(fs, other.path), other.size) for other in beside]
        shard = _make_shard(name, _url(fs, file.path), index, [file, *beside], places)
        yield from _cut(source, shard) if _is_array(source, file) else [shard]


def _group(source: Source, fs: Any, root: str, files: Sequence[_File]) -> list[list[_File]]:
    """Each shard's own file, and those beside it; one that should be there and is not has no stamp."""
    if source.format == "idx":
        return [[file, *_find_labels(source, fs, file)] for file in files]
    if source.format == "semdedup":
        return _group_semdedup(source, fs, root, files)
    if source.has_images:
        return [[file] for file in files]
    there = {file.relative: file for file in files}
    return [[there.get(name) or _absent(root, name) for name in names] for names in pair(source.format, there)]


def _group_semdedup(source: Source, fs: Any, root: str, files: Sequence[_File]) -> list[list[_File]]:
    """Sorted clusters with the array that they point into, or else an array with its paths."""
    clusters = [file for file in files if not _is_array(source, file)]
    if clusters:
        path = source.embeddings_path or f"{posixpath.dirname(clusters[0].path).rpartition('/')[0]}/{EMBEDDINGS}"
        embeddings = _find_file(source, fs, "embeddings_path", path, is_named=source.embeddings_path is not None)
        return [[cluster, *embeddings] for cluster in clusters]
    array = next((file for file in files if len(files) == 1 or file.relative == EMBEDDINGS), None)
    if array is None:
        raise InputError(f"pool path must be an array or hold {EMBEDDINGS} or sorted clusters, got {source.path}")
    path = source.paths_path or f"{posixpath.dirname(array.path)}/{PATHS}"
    return [[array, *_find_file(source, fs, "paths_path", path, is_named=source.paths_path is not None)]]


def _is_array(source: Source, file: _File) -> bool:
    return source.format == "semdedup" and not is_sorted_cluster(file.relative)


def _cut(source: Source, array: Shard) -> Iterator[Shard]:
    """The shards of one large array: slices of its rows; all of it where its header cannot be read."""
    from pipeline.readers.arrays import read_layout  # the readers import this module
    from pipeline.readers.sample import ShardDamagedError

    try:
        rows = read_layout(array.url, source).rows
    except ShardDamagedError:
        rows = 0
    size = source.shard_size or ROWS_PER_SHARD
    for number, start in enumerate(range(0, max(1, rows), size)):
        name = f"{array.name}-{number:05d}"
        stop = min(rows, start + size)
        share = array.size * (stop - start) // max(1, rows)
        fingerprint = _fingerprint([array.fingerprint, f"{start}:{stop}"])
        yield replace(array, name=name, size=share, fingerprint=fingerprint, rows=(start, stop))


def _make_shard(name: str, url: str, source: int, files: Sequence[_File], places: Sequence[tuple[str, int]]) -> Shard:
    size = sum(file.size for file in files)
    facts = [f"{file.relative}\0{file.size}\0{file.stamp}" for file in files]
    return Shard(name, url, source, size, _fingerprint([name, *facts]), tuple(places))


def _fingerprint(parts: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


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
    path = open_location(source.path, source.storage)[1]
    try:
        kind = kind_of(fs, path)
        if kind == "file":
            found, is_exact = {path: retry(lambda: fs.info(path))}, True
        elif kind == "directory":
            found, is_exact = retry(lambda: fs.find(path, detail=True)), False
        elif _WILDCARD.search(path):
            found, is_exact = retry(lambda: _glob(fs, path)), source.format in ("webdataset", "parquet")
        else:
            raise InputError(f"pool path must exist, got {source.path}")
        if source.format == "datacomp" and path.endswith(_TABLE):
            found |= retry(lambda: fs.glob(path.removesuffix(_TABLE) + ".npz", detail=True))
    except InputError:
        raise
    except Exception as error:
        raise _unreachable(source, error) from error
    files = []
    for place, listed in found.items():
        info = _followed(fs, listed)
        if info["type"] != "file" or not (is_exact or place.lower().endswith(_SUFFIXES[source.format])):
            continue
        if not place.startswith(f"{root}/"):
            raise ConfigError(f"root must be a folder above path, got root {source.root} and path {source.path}")
        relative = place[len(root) + 1 :]
        is_labels = source.format == "idx" and not is_exact and _LABELS in posixpath.basename(place)
        if not is_labels and not any(part.startswith(".") for part in relative.split("/")):
            files.append(_File(place, relative, info["size"] or 0, version_of(info)))
    return sorted(files, key=lambda file: file.relative)


def _followed(fs: Any, info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a link on a disk, what it leads to: that file's size, and the time that changes with it.

    Raises:
        InputError: it leads to nothing.
    """
    if not info.get("islink"):
        return info
    try:
        found: Mapping[str, Any] = fs.info(os.path.realpath(info["name"]))
    except FileNotFoundError as error:
        raise InputError(f"pool path must hold files, got {info['name']}, a link to nothing") from error
    return found


def _find_labels(source: Source, fs: Any, images: _File) -> list[_File]:
    """The labels of an IDX file: none when no path was given and none lie beside it."""
    if source.labels_path is not None:
        return _find_file(source, fs, "labels_path", source.labels_path, is_named=True)
    folder, _, base = images.path.rpartition("/")
    path = f"{folder}/{base.replace('images', _LABELS).replace('idx3', 'idx1')}"
    return [] if path == images.path else _find_file(source, fs, "labels_path", path, is_named=False)


def _find_file(source: Source, fs: Any, key: str, url: str, *, is_named: bool) -> list[_File]:
    """One more file of a source. Where the config names none, there need not be one."""
    path = open_location(url, source.storage)[1] if is_named else url
    if kind_of(fs, path) != "file":
        if is_named:
            raise InputError(f"{key} must be a file, got {url}")
        return []
    info = _followed(fs, retry(lambda: fs.info(path)))
    return [_File(path, posixpath.basename(path), info["size"], version_of(info))]


def _absent(root: str, name: str) -> _File:
    return _File(f"{root}/{name}", name, 0, "")


def _url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))
