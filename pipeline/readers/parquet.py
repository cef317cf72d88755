"""Parquet shards: one row is one sample; the image lies in a column, or in a file that a column names.

Tables that lie beside arrays of embeddings are read here, too: their rows have no image and need none.

Columns with no part to play become metadata as far as JSON can hold them: binary ones are left out, dates become ISO
text, NaN becomes None. Columns of types that Python libraries have registered, such as Ray's for pickled objects, are
never looked at. A path must lie, once joined to the folder of the Parquet file, below the source's root. With
`key_column`, a key that returns is rejected as `duplicate_key`, under a key that we make up: `a#row-00000012`. Keys
that end like this are ours alone: a row that brings one is a `bad_row`. A page that cannot be decoded ends its shard.
"""

import datetime
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import UserError
from operators.rejects import Damage, Reason
from pipeline.listing import locate_root
from pipeline.pool import Pool, Shard, Source
from pipeline.readers.columns import Columns, resolve_columns
from pipeline.readers.sample import RawSample, ShardDamagedError, first_fault, judge_image, supplied_uid
from pipeline.readers.stream import read_files
from pipeline.remote import open_location
from pipeline.resuming import ResumingFile, open_file

PAGE_BUFFER_BYTES = 4 << 20
BATCH_ROWS = 64
BATCH_ROWS_WITHOUT_IMAGES = 4096

_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
_MADE_UP = re.compile(r"#row-\d{8,}\Z")
_BAD = object()
"""Stands for a cell that Python cannot hold: text that is not UTF-8, a date before year 1."""


class _Claim(NamedTuple):
    """A row's own key, and what was wrong with the one it brought."""

    key: str
    fault: Reason | None


class _Image(NamedTuple):
    """An encoded image and its extension; both empty where there is a fault."""

    data: bytes
    ext: str
    fault: Reason | None


_NO_IMAGE = _Image(b"", "", None)


def read_parquet(pool: Pool, shard: Shard, rows: frozenset[int] | None, members: bool) -> Iterator[RawSample]:
    """Yields the rows of a table, or those of `rows` only; see `pipeline.readers.read_shard`."""
    source = pool.sources[shard.source]
    with open_file(shard.url, source.storage, read_ahead=False) as stream:
        table = _open_table(stream)
        try:
            columns = resolve_columns(table.schema_arrow, source, shard.name)
        except UserError as error:
            raise ShardDamagedError(Damage.UNREADABLE, str(error)) from error
        finder = _ImageFinder(pool, shard)
        keys: set[str] = set()
        for first_row, batch in _batches(table, stream, columns, rows):
            for sample in compose_batch(batch, first_row, columns, source, keys=keys, rows=rows, finder=finder):
                sample.members = {sample.ext: sample.image} if members and sample.image else {}
                yield sample


def compose_batch(
    batch: Any,
    first_row: int,
    columns: Columns,
    source: Source,
    *,
    keys: set[str],
    rows: frozenset[int] | None,
    finder: "_ImageFinder | None" = None,
) -> Iterator[RawSample]:
    """Yields the samples of one record batch, or those of `rows` only.

    Args:
        batch: of a table.
        first_row: of the batch, in its shard.
        columns: which column plays which part.
        source: says whether text is needed.
        keys: those of the rows before; gains those of this batch.
        rows: numbers of the rows that are wanted, in their shard.
        finder: of the images, where there are any.
    """
    claims = _claim_keys(keys, batch, columns.key, first_row)
    chosen = [i for i in range(batch.num_rows) if rows is None or first_row + i in rows]
    if not chosen:
        return
    if len(chosen) < batch.num_rows:
        batch = batch.take(pa.array(chosen))
    cells = {name: _cells(batch.column(name)) for name in columns.used}
    column = columns.image or columns.path
    images = [_NO_IMAGE] * len(chosen) if finder is None or column is None else finder.find(cells[column])
    for place, i in enumerate(chosen):
        record = {name: values[place] for name, values in cells.items()}
        yield _compose(first_row + i, claims[i], images[place], record, columns, source.needs_text)


def count_rows(url: str, source: Source) -> int:
    """The rows of a table, by its footer. Raises ShardDamagedError, FileNotFoundError."""
    with open_file(url, source.storage, read_ahead=False) as stream:
        return int(_open_table(stream).metadata.num_rows)


def read_one(pool: Pool, shard: Shard, row: int, offset: int, nbytes: int) -> bytes | None:
    """The image of a row."""
    return next((sample.image for sample in read_parquet(pool, shard, frozenset({row}), members=False)), None)


def check_parquet(source: Source, shard: Shard) -> None:
    """Refuses a table whose columns are not those of the config, or hold no images.

    Raises:
        ConfigError: a named column does not exist, or cannot play its part.
        InputError: there are no images.
    """
    with open_file(shard.url, source.storage, read_ahead=False) as stream:
        resolve_columns(_open_table(stream).schema_arrow, source, shard.url)


def sniff_extension(image: bytes) -> str:
    """The usual file extension of an encoded image, from its first bytes; empty when they are none that we know."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return next((extension for magic, extension in _MAGIC if image.startswith(magic)), "")


def _open_table(stream: ResumingFile) -> Any:
    stream.seek(0)  # a missing file says so here; pyarrow would call it a bad footer
    try:
        return pq.ParquetFile(stream, pre_buffer=False, buffer_size=PAGE_BUFFER_BYTES, page_checksum_verification=True)
    except (pa.ArrowException, OSError, MemoryError) as error:
        if stream.failed:
            raise
        raise ShardDamagedError(Damage.UNREADABLE, f"bad Parquet footer: {error}") from error


def _batches(
    table: Any, stream: ResumingFile, columns: Columns, rows: frozenset[int] | None
) -> Iterator[tuple[int, Any]]:
    """First row and record batch, one after the other. A row group without wanted rows gives its keys alone, if any."""
    row = 0
    batch_rows = BATCH_ROWS if columns.image or columns.path else BATCH_ROWS_WITHOUT_IMAGES
    for group in range(table.num_row_groups):
        end = row + table.metadata.row_group(group).num_rows
        wanted = rows is None or not rows.isdisjoint(range(row, end))
        names = columns.used if wanted else [columns.key] if columns.key else []
        try:
            if names:
                # One thread: this runs inside a task that was given one CPU.
                for batch in table.iter_batches(batch_rows, row_groups=[group], columns=names, use_threads=False):
                    yield row, batch
                    row += batch.num_rows
            else:
                row = end
        except (pa.ArrowException, OSError, MemoryError) as error:
            if stream.failed:
                raise
            raise _damaged(row, f"bad page at row {row}: {error}") from error
        if row != end:
            raise _damaged(row, f"row group {group} ends at row {row} instead of {end}")


def _damaged(row: int, message: str) -> ShardDamagedError:
    return ShardDamagedError(Damage.TRUNCATED if row else Damage.UNREADABLE, message)


def _claim_keys(seen: set[str], batch: Any, column: str | None, first_row: int) -> list[_Claim]:
    """The key of each row of a batch, and what is wrong with it.

    Args:
        seen: the keys of the rows before; gains those of this batch.
        batch: of a table.
        column: of keys, None where there is none.
        first_row: of the batch.
    """
    numbers = [f"{row:08d}" for row in range(first_row, first_row + batch.num_rows)]
    if column is None:
        return [_Claim(number, None) for number in numbers]
    claims = []
    for number, cell in zip(numbers, _cells(batch.column(column)), strict=True):
        key = "" if cell is None or cell is _BAD else str(cell)
        if cell is None or cell is _BAD or _MADE_UP.search(key):
            claims.append(_Claim(f"{key}#row-{number}", Reason.BAD_ROW))
        elif key in seen:
            claims.append(_Claim(f"{key}#row-{number}", Reason.DUPLICATE_KEY))
        else:
            seen.add(key)
            claims.append(_Claim(key, None))
    return claims


def _cells(column: Any) -> list[Any]:
    try:
        return cast(list[Any], column.to_pylist())
    except (ValueError, OverflowError):
        return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        return _BAD


def _compose(
    row: int, claim: _Claim, image: _Image, record: dict[str, Any], columns: Columns, needs_text: bool
) -> RawSample:
    faults = {claim.fault, image.fault}
    caption = record[columns.text] if columns.text else None
    if caption is _BAD:
        caption = None
        faults.add(Reason.BAD_TEXT_ENCODING)
    if needs_text and not (caption and caption.strip()):
        faults.add(Reason.MISSING_TEXT)
    if any(record[name] is _BAD for name in columns.metadata):
        faults.add(Reason.BAD_ROW)
    uid, uid_invalid = supplied_uid(record[columns.uid]) if columns.uid else (None, False)
    return RawSample(
        row=row,
        key=claim.key,
        image=image.data,
        ext=image.ext,
        offset=row,
        caption=caption,
        metadata={name: _jsonable(record[name]) for name in columns.metadata if record[name] is not _BAD},
        uid=uid,
        uid_invalid=uid_invalid,
        reason=first_fault(faults),
    )


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


class _ImageFinder:
    """Turns image or path cells into images: bytes, extension, and what is wrong."""

    def __init__(self, pool: Pool, shard: Shard) -> None:
        source = pool.sources[shard.source]
        self._max_bytes = pool.max_member_bytes
        self._fs, self._root = locate_root(source)
        self._folder = posixpath.dirname(open_location(shard.url, source.storage)[1])

    def find(self, cells: Sequence[Any]) -> list[_Image]:
        """One entry a cell, in order; no bytes where there is a fault."""
        parts = [_split(cell) for cell in cells]
        places = [self._locate(path) if data is None and path is not None else None for data, path in parts]
        needed = [place for place in places if place is not None]
        files = iter(read_files(self._fs, needed, self._max_bytes))
        found = []
        for cell, (data, path), place in zip(cells, parts, places, strict=True):
            if place is not None:
                data = next(files)
            fault = judge_image(data, self._max_bytes)
            if cell is _BAD:
                fault = Reason.BAD_ROW
            elif data is None and path is not None and place is None:
                fault = Reason.UNSAFE_NAME
            found.append(_Image(b"", "", fault) if fault or not data else _Image(data, _extension(data, path), None))
        return found

    def _locate(self, path: str) -> str | None:
        """Where a path cell points to, None when that is not below the root."""
        if "\0" in path:
            return None
        if "://" in path:
            known = self._fs.protocol  # one name, or several
            if path.partition("://")[0] not in ((known,) if isinstance(known, str) else known):
                return None
            path = self._fs._strip_protocol(path)
        else:
            path = posixpath.join(self._folder, path)
        place = posixpath.normpath(path)
        return place if place.startswith(f"{self._root}/") else None


def _split(cell: Any) -> tuple[bytes | None, str | None]:
    """Bytes and path of an image cell (bytes, or HuggingFace's struct) or a path cell."""
    if isinstance(cell, dict):
        return cell["bytes"], cell.get("path")
    return (cell, None) if isinstance(cell, bytes) else (None, cell if isinstance(cell, str) else None)


def _extension(image: bytes, path: str | None) -> str:
    suffix = posixpath.splitext(path or "")[1].removeprefix(".").lower()
    return sniff_extension(image) or suffix or "bin"
