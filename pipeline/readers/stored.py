"""Pools of embeddings: rows of a table, and beside them, row by row, arrays of vectors.

    clip_retrieval    arrays `img_emb` and `text_emb`
    datacomp          the arrays of the `.npz`, such as `l14_img` and `l14_txt`
    semdedup          one array, `embeddings`

A shard whose table and arrays differ in length is `unreadable`: nothing tells which rows belong together. One of whose
arrays ends before its own header says so is `truncated` there. SemDeDup's files have no table: the path is the key, and
the uid where it is 32 hexadecimal digits; sorted clusters give `cluster` and `distance` as metadata.

Legend: N rows of a shard, n rows of a block, D columns.
"""

import posixpath
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import InputChanged, InputError, UserError
from operators.rejects import Damage, Reason
from operators.uids import parse_uid
from pipeline.array_files import is_sorted_cluster
from pipeline.pool import Pool, Shard, Source
from pipeline.readers.arrays import ArrayStream, list_members, member_url, open_array, read_layout, read_rows
from pipeline.readers.columns import Columns
from pipeline.readers.parquet import check_parquet, compose_batch, count_rows, read_parquet
from pipeline.readers.sample import RawSample, ShardDamagedError

BLOCK_ROWS = 4096
SEMDEDUP_ARRAY = "embeddings"

_IMAGE_SUFFIXES = ("_img", "img_emb", SEMDEDUP_ARRAY)
_PATH_COLUMNS = Columns(None, None, None, "uid", "path", ())
_CLUSTER_COLUMNS = Columns(None, None, None, "uid", "path", ("cluster", "distance"))


def is_image_array(name: str) -> bool:
    """Whether an array holds embeddings of images, by its name."""
    return name.endswith(_IMAGE_SUFFIXES)


def array_urls(source: Source, shard: Shard) -> dict[str, str]:
    """Where each array of a shard lies. Raises FileNotFoundError, ShardDamagedError where an `.npz` cannot be read."""
    urls = [url for url, _ in shard.files]
    if source.format == "datacomp":
        return {name: member_url(npz, name) for npz in urls for name in list_members(npz, source)}
    if source.format == "semdedup":
        arrays = urls if is_sorted_cluster(shard.url) else [shard.url]
        return dict(zip([SEMDEDUP_ARRAY], arrays, strict=False))
    return {posixpath.basename(posixpath.dirname(url)): url for url in urls}


def array_widths(source: Source, shard: Shard) -> dict[str, int]:
    """The columns of each array of a shard.

    Raises:
        InputError: an array holds something else than numbers.
        ShardDamagedError, FileNotFoundError: the shard is damaged.
    """
    return {name: read_layout(url, source).columns for name, url in array_urls(source, shard).items()}


def check_stored(source: Source, shard: Shard) -> None:
    """Refuses a shard that can never be read as what the config says: columns that are not there, arrays of objects.

    Raises:
        ConfigError: a named column does not exist, or cannot play its part.
        InputError: an array holds something else than it should.
    """
    array_widths(source, shard)
    if source.format != "semdedup":
        check_parquet(source, shard)
    elif is_sorted_cluster(shard.url):
        read_layout(shard.url, source, kind="SU")
    else:
        for url, _ in shard.files:
            read_layout(url, source, kind="SU")


def read_stored(pool: Pool, shard: Shard, rows: frozenset[int] | None, arrays: Collection[str]) -> Iterator[RawSample]:
    """Yields the rows of a shard with their vectors, or those of `rows` only; see `pipeline.readers.read_shard`.

    Args:
        pool: limits and sources.
        shard: one of a source of embeddings.
        rows: which rows.
        arrays: the arrays to be read besides those of images, which always are.
    """
    source = pool.sources[shard.source]
    try:
        urls = {name: url for name, url in array_urls(source, shard).items() if is_image_array(name) or name in arrays}
        if source.format == "semdedup" and is_sorted_cluster(shard.url):
            yield from _read_cluster(source, shard, rows, urls.get(SEMDEDUP_ARRAY))
        elif source.format == "semdedup":
            yield from _with_vectors(_read_paths(source, shard, rows), source, shard, urls)
        else:
            yield from _with_vectors(read_parquet(pool, shard, rows, members=False), source, shard, urls)
    except InputChanged:
        raise
    except UserError as error:
        raise ShardDamagedError(Damage.UNREADABLE, str(error)) from error


def _with_vectors(
    samples: Iterator[RawSample], source: Source, shard: Shard, urls: Mapping[str, str]
) -> Iterator[RawSample]:
    """Gives each sample its row of every array; all arrays must be as long as the shard."""
    start, stop = shard.rows or (0, count_rows(shard.url, source))
    with ExitStack() as stack:
        streams = {name: stack.enter_context(open_array(url, source, start=start)) for name, url in urls.items()}
        lengths = {name: stream.layout.rows for name, stream in streams.items() if shard.rows is None}
        if any(length != stop for length in lengths.values()):
            got = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ShardDamagedError(Damage.UNREADABLE, f"arrays must have the table's {stop} rows, got {got}")
        blocks: dict[str, NDArray[Any]] = {}
        first = end = 0
        for sample in samples:
            while sample.row >= end:
                first, end = end, min(end + BLOCK_ROWS, stop - start)
                blocks = {name: stream.read(end - first) for name, stream in streams.items()}
            for name, block_nD in blocks.items():
                if sample.row - first >= len(block_nD):
                    raise ShardDamagedError(_cut(sample.row), f"{name} ends at row {sample.row} of {stop - start}")
                sample.vectors[name] = block_nD[sample.row - first]
            yield sample


def _read_paths(source: Source, shard: Shard, rows: frozenset[int] | None) -> Iterator[RawSample]:
    """The samples of a slice of a SemDeDup array: named by their paths, by their rows where there are none."""
    assert shard.rows is not None
    start, stop = shard.rows
    with ExitStack() as stack:
        paths: ArrayStream | None = None
        for url, _ in shard.files:
            paths = stack.enter_context(open_array(url, source, kind="SU", start=start))
            total = read_layout(shard.url, source).rows
            if paths.layout.rows != total:
                message = f"paths must be one for each of {total} rows, got {paths.layout.rows}"
                raise ShardDamagedError(Damage.UNREADABLE, message)
        keys: set[str] = set()
        for first in range(0, stop - start, BLOCK_ROWS):
            count = min(BLOCK_ROWS, stop - start - first)
            names = [f"{start + first + i:08d}" for i in range(count)]
            if paths is not None:
                names = _texts(paths.read(count)[:, 0])
            batch = pa.record_batch({"path": names, "uid": _uids(names)})
            yield from compose_batch(batch, first, _PATH_COLUMNS, source, keys=keys, rows=rows)
            if len(names) < count:
                raise ShardDamagedError(_cut(first + len(names)), f"paths end at row {first + len(names)}")


def _read_cluster(source: Source, shard: Shard, rows: frozenset[int] | None, url: str | None) -> Iterator[RawSample]:
    """The samples of one of SemDeDup's sorted clusters: rows of [path, row, distance, cluster]."""
    total = 0 if url is None else read_layout(url, source).rows
    keys: set[str] = set()
    with open_array(shard.url, source, kind="SU") as stream:
        if stream.layout.columns != 4:
            raise InputError(f"{shard.url} must have the 4 columns of a sorted cluster, got {stream.layout.columns}")
        for first in range(0, stream.layout.rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, stream.layout.rows - first)
            cells_n4 = stream.read(count)
            paths, *numbers = (_texts(cells_n4[:, column]) for column in range(4))
            row_n, distance_n, cluster_n = (_numbers(texts) for texts in numbers)
            batch = pa.record_batch(
                {
                    "path": pa.array(paths, pa.string()),
                    "uid": pa.array(_uids(paths), pa.string()),
                    "cluster": pa.array(cluster_n, pa.int64(), from_pandas=True, safe=False),
                    "distance": pa.array(distance_n, pa.float64(), from_pandas=True),
                }
            )
            vectors = _pick(url, source, row_n, total)
            for sample in compose_batch(batch, first, _CLUSTER_COLUMNS, source, keys=keys, rows=rows):
                if url is not None:
                    sample.vectors[SEMDEDUP_ARRAY] = vectors[sample.row - first]
                if not 0 <= row_n[sample.row - first] < (total if url is not None else np.inf):
                    sample.reason = sample.reason or Reason.BAD_ROW
                yield sample
            if len(paths) < count:
                raise ShardDamagedError(_cut(first + len(paths)), f"ends at row {first + len(paths)}")


def _pick(url: str | None, source: Source, row_n: NDArray[np.float64], total: int) -> NDArray[Any]:
    """The vectors that the rows of a cluster point to; zeros where they point nowhere."""
    if url is None:
        return np.empty((0, 0))
    there_n = (row_n >= 0) & (row_n < total)
    found = read_rows(url, source, row_n[there_n].astype(np.int64))
    vectors_nD = np.zeros((len(row_n), found.shape[1]), found.dtype)
    vectors_nD[there_n] = found
    return vectors_nD


def _texts(cells_n: NDArray[Any]) -> list[str]:
    """Strings as text; of byte strings that are not UTF-8, the other bytes are escaped."""
    if cells_n.dtype.kind == "U":
        return [text.encode("utf-8", "backslashreplace").decode() for text in cells_n.tolist()]
    return [data.decode("utf-8", "backslashreplace") for data in cells_n.tolist()]


def _uids(paths: list[str]) -> list[str | None]:
    return [path if parse_uid(path) else None for path in paths]


def _numbers(texts: list[str]) -> NDArray[np.float64]:
    """Numbers written as text; NaN where a text is none."""
    values = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        try:
            values[i] = float(text)
        except ValueError:
            continue
    return values


def _cut(row: int) -> Damage:
    return Damage.TRUNCATED if row else Damage.UNREADABLE
