"""Tars with the original bytes, in DataComp's resharded layout.

    00000000.tar            {index:012d}.<ext> for every member of every sample; the index counts the kept samples
    00000000_stats.json     {"successes": n}, what DataComp's loaders read the size from
    00000000.parquet        MAPPING: where each sample came from
    sample_ids.npy          the uids of all samples, sorted (see `pipeline.export.uids`)
    meta.json               what this is; written last

Samples lie in the order of (shard name, row). The members of a webdataset sample are copied unchanged, JSON included,
under their lower-case extensions; for other sources there is the image, `.txt` where there is a caption, and `.json`
with the metadata, `uid`, `shard` and `key`. Keys are numbers because those of two shards may be the same.

(Gadre et al. 2023, arXiv 2304.14108, released tooling. Their resharder makes keys from uids and lets a sample repeat.)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import InputError
from operators.images import image_hash
from pipeline.artifact import read_columns
from pipeline.columns import booleans
from pipeline.export.settings import WebdatasetExport
from pipeline.export.slices import Group, Slice, cut_at, cut_every, kept_slices, num_rows, read_kept
from pipeline.export.tar import END, pack_member, packed_bytes
from pipeline.export.target import Piece
from pipeline.export.uids import write_uids
from pipeline.pool import Pool, Shard
from pipeline.readers import RawSample, ShardEnd, read_shard
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.storage import Store, to_json

VERSION = 1

MAPPING = pa.schema([(name, pa.string()) for name in ("key", "uid", "source_shard", "source_key")])

_ROW_COLUMNS = ("uid", "shard", "key", "row", "caption", "metadata", "image_hash")
_SIZE_COLUMNS = ("uid", "shard", "key", "caption", "metadata", "bytes")


@dataclass(frozen=True)
class Work:
    """What one task is told: some kept rows, and the shards that hold them.

    Attributes:
        store: the workspace.
        pool: the pool's settings.
        group: which rows.
        shards: one for each slice of the group.
    """

    store: Store
    pool: Pool
    group: Group
    shards: tuple[Shard, ...]

    @property
    def sources(self) -> Iterator[tuple[Slice, Shard]]:
        """The slices with their shards."""
        return zip(self.group, self.shards, strict=True)

    def is_webdataset(self, shard: Shard) -> bool:
        """Whether a shard is a tar, whose members are copied."""
        return self.pool.sources[shard.source].format == "webdataset"


def plan(run: Run, settings: WebdatasetExport) -> list[list[Piece]]:
    """The tars and the uids, then `meta.json`.

    Groups of `max_samples_per_shard` samples are cut further where one would be too large.
    """
    groups = cut_every(kept_slices(run), settings.max_samples_per_shard)
    measured = spread(
        partial(_split, settings.max_shard_bytes), list(enumerate(_work(run, groups))), workers=run.workers
    )
    split = dict(measured)
    pieces: list[Piece] = []
    first = 0
    for number, work in enumerate(_work(run, [part for i in range(len(groups)) for part in split[i]])):
        names = (f"{number:08d}.tar", f"{number:08d}.parquet", f"{number:08d}_stats.json")
        pieces.append(Piece(names, num_rows(work.group), partial(write_shard, work, first)))
        first += num_rows(work.group)
    ids = Piece(("sample_ids.npy",), 0, partial(write_uids, run.store, kept_slices(run)))
    meta = {"format": "webdataset", "samples": first, "shards": len(pieces)}
    return [[*pieces, ids], [Piece(("meta.json",), 0, partial(_write_json, meta))]]


def _work(run: Run, groups: Sequence[Group]) -> list[Work]:
    return [Work(run.store, run.pool, group, tuple(run.shards[piece.shard] for piece in group)) for group in groups]


def write_shard(work: Work, first: int, paths: Sequence[Path]) -> None:
    """Writes one tar, its mapping and its stats, one sample in memory at a time.

    Args:
        work: which samples.
        first: the index of the first of them.
        paths: of the three files.

    Raises:
        InputError: a sample is no longer what the run read.
    """
    tar_path, mapping_path, stats_path = paths
    mapping = []
    with tar_path.open("wb") as tar:
        for index, (row, members) in enumerate(_samples(work), first):
            key = f"{index:012d}"
            for extension, data in members.items():
                tar.write(pack_member(f"{key}.{extension}" if extension else key, data))
            mapping.append((key, row["uid"].hex(), row["shard"], row["key"]))
        tar.write(END)
    columns = [list(column) for column in zip(*mapping, strict=True)] or [[] for _ in MAPPING]
    pq.write_table(pa.table(columns, schema=MAPPING), mapping_path, compression="zstd")
    _write_json({"successes": len(mapping)}, [stats_path])


def _samples(work: Work) -> Iterator[tuple[dict[str, Any], Mapping[str, bytes]]]:
    """Rows of the samples table with the members to write."""
    for piece, shard in work.sources:
        rows = read_kept(work.store, piece, _ROW_COLUMNS).to_pylist()
        found = read_shard(work.pool, shard, rows=[row["row"] for row in rows], members=True)
        for row, sample in zip(rows, found, strict=False):
            if not _is_same(row, sample):
                raise InputError(
                    f"sample {row['key']} of shard {shard.name} must be what the run read, got other bytes or none: "
                    "run `winnow curate` again"
                )
            assert isinstance(sample, RawSample)
            yield row, sample.members if work.is_webdataset(shard) else _own_members(row, sample)


def _is_same(row: Mapping[str, Any], sample: RawSample | ShardEnd) -> bool:
    if isinstance(sample, ShardEnd):
        return False
    return (sample.row, sample.key, image_hash(sample.image)) == (row["row"], row["key"], row["image_hash"])


def _own_members(row: Mapping[str, Any], sample: RawSample) -> dict[str, bytes]:
    return {sample.ext: sample.image, **side_members(row)}


def side_members(row: Mapping[str, Any]) -> dict[str, bytes]:
    """The text and the JSON of a sample that brings no members of its own. The user's fields win, but for the uid."""
    metadata = json.loads(row["metadata"] or "{}")
    record = {"shard": row["shard"], "key": row["key"], **metadata, "uid": row["uid"].hex()}
    text = {} if row["caption"] is None else {"txt": row["caption"].encode()}
    return text | {"json": json.dumps(record, sort_keys=True).encode()}


def _split(limit: int, item: tuple[int, Work]) -> tuple[int, list[Group]]:
    """Cuts a group into parts whose tars stay within the limit; gives the group's number back with them."""
    number, work = item
    sizes_N = np.concatenate([_packed_sizes(work, piece, shard) for piece, shard in work.sources])
    return number, cut_at(work.group, cut_by_size(sizes_N, limit - len(END)))


def cut_by_size(sizes_N: NDArray[np.int64], limit: int) -> list[int]:
    """Where to cut a row of samples so that no part is larger than the limit, but for single samples that are."""
    cuts, filled = [], 0
    for i, size in enumerate(sizes_N.tolist()):
        if i and filled + size > limit:
            cuts.append(i)
            filled = 0
        filled += size
    return cuts


def _packed_sizes(work: Work, piece: Slice, shard: Shard) -> NDArray[np.int64]:
    """What the samples of a slice take in a tar; at least that for those of a tar, whose members are not all known."""
    if work.is_webdataset(shard):
        table = read_columns(work.store, piece.samples, ["offset", "bytes"])
        kept_N = booleans(read_columns(work.store, piece.verdicts, ["kept"])["kept"])
        spans_N = spans(table["offset"].to_numpy(), table["bytes"].to_numpy(), shard.size)
        return spans_N[kept_N][piece.start : piece.stop]
    rows = read_kept(work.store, piece, _SIZE_COLUMNS).to_pylist()
    sizes = [
        packed_bytes(row["bytes"]) + sum(packed_bytes(len(data)) for data in side_members(row).values()) for row in rows
    ]
    return np.array(sizes, dtype=np.int64)


def spans(offset_N: NDArray[np.int64], bytes_N: NDArray[np.int64], shard_bytes: int) -> NDArray[np.int64]:
    """An upper bound of what each sample of a tar takes: all that lies between the images before and after its own.

    So the text of its neighbours counts too, which is little beside an image, and no tar is read to find out. Only the
    last sample of a gzipped tar can take more, since the length of the archive is not known.

    Args:
        offset_N: int64, where the image of each row begins; rows in the order of the shard.
        bytes_N: int64, its length; 0 where there is none.
        shard_bytes: size of the shard.
    """
    begins_N = np.where(bytes_N > 0, offset_N, np.iinfo(np.int64).max)
    ends_N = np.where(bytes_N > 0, offset_N + bytes_N, 0)
    end = max(shard_bytes, int(ends_N.max(initial=0)))
    before_N = np.concatenate([[0], np.maximum.accumulate(ends_N)[:-1]])
    after_N = np.concatenate([np.minimum.accumulate(begins_N[::-1])[::-1][1:], [end]])
    return cast("NDArray[np.int64]", np.minimum(after_N, end) - before_N)


def _write_json(value: Any, paths: Sequence[Path]) -> None:
    (path,) = paths
    path.write_bytes(to_json(value))
