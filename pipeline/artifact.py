"""Artifacts: the immutable outputs of steps, one part for each shard, listed by a manifest.

Layout, relative to the workspace:

    <step>/<hash>/<part id>/<sha256>-<crc>.parquet    a part's rows, named by their content and the CRC of the footer
    <step>/<hash>/<part id>/part.json                 the commit: it names the file above, its rows and counts
    <step>/<hash>/<anything>                          what a step finds before it goes over the shards: a fit, quotas
    <step>/<hash>/manifest-<digest>.json              lists the parts of one pool and the files beside; written last

A part id is a digest of the shard's fingerprint, of how it is read, and of the rows that entered where only some did.
So one new shard costs one new part. A file that no `part.json` names is what a dead attempt left behind: never read.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import WorkspaceError
from pipeline.integrity import (
    Checksum,
    checksum,
    damaged,
    footer_checksum,
    read_footer,
    read_parquet,
    read_sealed,
    reading,
    sealed,
)
from pipeline.local_files import file_sha256
from pipeline.parts import Part, Parts
from pipeline.storage import Store, digest

FORMAT_VERSION = 1
ROW_GROUP_ROWS = 8192

_BESIDE = re.compile(r"[\w.-]+/[0-9a-f]{16}/\S+")
"""What a text in the info of an artifact looks like that is the path of a file in the workspace."""
_HASHED_AT_ONCE = 8

_REPETITIVE = {"reason", "ext", "shard"}
_PACKAGES = ("winnow", "numpy", "pyarrow", "ray", "torch", "open_clip_torch", "timm", "pillow")


@dataclass(frozen=True, slots=True)
class Artifact:
    """All parts of one step over one pool, in the order of the shards' names.

    Attributes:
        step: the step's name.
        folder: where it lies, relative to the workspace.
        parts: one for each shard; packed.
        info: the step's own results and settings, as the manifest shows them.
        reused: whether the manifest was there before this run.
        seconds: wall time of the run that made it.
        reads: the manifests of the artifacts that it was made from.
        files: the files that the info names, by path.
        rows_new: rows that entered parts which this run made; 0 where it found all of them.
    """

    step: str
    folder: str
    parts: Sequence[Part]
    info: Mapping[str, Any] = field(default_factory=dict)
    reused: bool = False
    seconds: float = 0.0
    reads: tuple[str, ...] = ()
    files: Mapping[str, Checksum] = field(default_factory=dict)
    rows_new: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Parts):
            object.__setattr__(self, "parts", Parts(self.parts))

    @property
    def manifest(self) -> str:
        """The name of its manifest."""
        return manifest_name(self.folder, self.column("id"))

    @property
    def digest(self) -> str:
        """Names the content: what a step that reads this artifact is addressed by."""
        return digest(self.folder, list(zip(self.column("id"), self.column("sha256"), strict=True)))

    @property
    def rows(self) -> int:
        """Rows over all parts."""
        return sum(self.column("rows"))

    def total(self, count: str) -> int:
        """The sum of one count over all parts."""
        return self._packed.sums[count]

    def totals(self, prefix: str) -> dict[str, int]:
        """The sums of all counts named `prefix:<reason>`, by reason, the most frequent first."""
        sums: dict[str, int] = {}
        for name, count in self._packed.sums.items():
            kind, _, reason = name.partition(":")
            if kind == prefix and reason:
                sums[reason] = count
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def column(self, name: str) -> list[Any]:
        """One field of all parts, in their order: a text or a number."""
        return self._packed.column(name)

    @property
    def _packed(self) -> Parts:
        assert isinstance(self.parts, Parts)
        return self.parts


def publish_part(store: Store, folder: str, draft: Part, tables: Iterable[pa.Table], schema: pa.Schema) -> Part:
    """Writes a part's rows, then commits it. Of two writers, the first to commit wins and both return its record.

    Args:
        store: the workspace.
        folder: the artifact's.
        draft: everything but `path`, `rows`, `size` and `sha256`.
        tables: the rows, in order, in pieces of any size.
        schema: of every table.
    """
    home = f"{folder}/{draft.id}"
    with store.scratch(home) as scratch:
        rows = _write_parquet(scratch, tables, schema)
        sha256 = file_sha256(scratch)
        with scratch.open("rb") as file:
            path = f"{home}/{sha256[:16]}-{footer_checksum(file)}.parquet"
        size = scratch.stat().st_size
        if not store.publish_file(scratch, path):
            store.replace_file(scratch, path)  # other bytes than it is named by are damaged
    part = replace(draft, path=path, rows=rows, size=size, sha256=sha256)
    if store.publish(f"{home}/part.json", sealed(asdict(part))):
        return part
    return read_part(store, home)


def read_part(store: Store, home: str) -> Part:
    """The committed record of a part's folder. Raises FileNotFoundError, DamagedError."""
    record = read_sealed(store, f"{home}/part.json")
    with reading(store, f"{home}/part.json"):
        return Part(**record)


def published_parts(store: Store, folder: str, part_ids: Iterable[str]) -> dict[str, Part]:
    """The committed parts among those asked for, by id: what an interrupted run left to go on from."""
    found = store.find(folder)
    homes = [part_id for part_id in part_ids if f"{folder}/{part_id}/part.json" in found]
    return {part_id: read_part(store, f"{folder}/{part_id}") for part_id in homes}


def find_part(store: Store, home: str) -> Part | None:
    """The committed record of a part's folder, if there is one."""
    try:
        return read_part(store, home)
    except FileNotFoundError:
        return None


def read_columns(store: Store, path: str, columns: list[str] | None = None) -> pa.Table:
    """Some columns of a part, or of another Parquet file of a workspace, or all of them. Raises DamagedError."""
    with reading(store, path), store.open(path) as file:
        return read_parquet(file, path, columns)


def read_schema(store: Store, path: str) -> pa.Schema:
    """The schema of a part, its footer checked. Raises DamagedError."""
    with reading(store, path), store.open(path) as file:
        return read_footer(file, path).schema.to_arrow_schema()


def publish_beside(store: Store, path: str, data: bytes) -> None:
    """Writes what a step has found before it goes over the shards: a function of its address, whoever writes it.

    Other bytes that are there already are damaged, and no manifest vouches for them: the step is not finished.
    """
    if not store.publish(path, data):
        store.replace(path, data)


def read_beside(store: Store, artifact: Artifact, path: str) -> bytes:
    """A file that the info of an artifact names. Raises DamagedError."""
    with reading(store, path):
        data = store.read(path)
    known = artifact.files.get(path)
    if known and (got := hashlib.sha256(data).hexdigest()) != known.sha256:
        raise damaged(store, path, f"the SHA-256 {got}, not {known.sha256}")
    return data


def parquet_bytes(table: pa.Table) -> bytes:
    """A small table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return cast(bytes, sink.getvalue().to_pybytes())


def manifest_name(folder: str, part_ids: Iterable[str]) -> str:
    """The name of the manifest that lists exactly these parts."""
    return f"{folder}/manifest-{digest(list(part_ids))}.json"


def publish_manifest(store: Store, artifact: Artifact, settings: Mapping[str, Any]) -> Artifact:
    """Publishes an artifact whole. What another run published first for the same parts is what counts."""
    name = artifact.manifest
    artifact = replace(artifact, files=_checksums(store, artifact))
    record = {
        "format_version": FORMAT_VERSION,
        "step": artifact.step,
        "settings": settings,
        "packages": package_versions(),
        "info": artifact.info,
        "reads": artifact.reads,
        "files": {path: asdict(file) for path, file in artifact.files.items()},
        "seconds": artifact.seconds,
        "parts": [asdict(part) for part in artifact.parts],
    }
    if store.publish(name, sealed(record)):
        return artifact
    return read_manifest(store, artifact.folder, name)


def read_manifest(store: Store, folder: str, name: str) -> Artifact:
    """Reads a published artifact.

    Raises:
        FileNotFoundError: it is not there.
        WorkspaceError: it was written by another format version.
        DamagedError: it is not what was written.
    """
    parts = Parts()
    record = read_sealed(store, name, parts.take)
    if record.get("format_version") != FORMAT_VERSION:
        raise WorkspaceError(
            f"{store.url}/{name} must have format_version {FORMAT_VERSION}, got {record.get('format_version')}"
        )
    with reading(store, name):
        files = {path: Checksum(**file) for path, file in record.get("files", {}).items()}
        facts = record["info"], True, record["seconds"], tuple(record.get("reads", ()))
        return Artifact(record["step"], folder, parts, *facts, files)


def named_files(info: Any) -> Iterator[str]:
    """The paths of files in the workspace that an artifact's info names."""
    if isinstance(info, str):
        if _BESIDE.fullmatch(info):
            yield info
    elif isinstance(info, Mapping | list | tuple):
        for value in info.values() if isinstance(info, Mapping) else info:
            yield from named_files(value)


def _checksums(store: Store, artifact: Artifact) -> dict[str, Checksum]:
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        paths = sorted(set(named_files(artifact.info)))
        return dict(zip(paths, pool.map(partial(checksum, store), paths), strict=True))


def mask_digest(kept_N: NDArray[np.bool_]) -> str:
    """Names a set of rows of one shard."""
    return digest(len(kept_N), np.packbits(kept_N).tobytes().hex())


def package_versions() -> dict[str, str]:
    """The versions of what the results depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Streams tables into row groups of `ROW_GROUP_ROWS`, whatever the tables' own sizes. Returns the rows."""
    rows = 0
    waiting: list[pa.Table] = []
    # Embeddings are noise to a compressor, and dictionaries of unique values are waste.
    dictionary = [item.name for item in schema if pa.types.is_string(item.type) and item.name in _REPETITIVE]
    options = {"compression": "zstd", "use_dictionary": dictionary, "write_page_checksum": True}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for table in tables:
            rows += table.num_rows
            waiting.append(table)
            if sum(piece.num_rows for piece in waiting) >= ROW_GROUP_ROWS:
                joined = pa.concat_tables(waiting)
                whole = joined.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
                writer.write_table(joined.slice(0, whole), row_group_size=ROW_GROUP_ROWS)
                waiting = [joined.slice(whole)]
        if waiting and sum(piece.num_rows for piece in waiting):
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP_ROWS)
    return rows
