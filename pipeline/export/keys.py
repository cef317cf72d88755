"""The kept keys of every shard, in one Parquet file that a loader can filter by; `pipeline.kept` reads it.

Nothing is copied: the pool stays as it is, and a training run passes over what was not kept.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.export.settings import KeysExport
from pipeline.export.slices import Group, kept_slices, num_rows, read_kept
from pipeline.export.target import Piece, open_target
from pipeline.kept import SCHEMA, SHARDS
from pipeline.run import Run
from pipeline.storage import Store

VERSION = 1

Place = tuple[str, str, str]
"""A shard's name, its path below its root, and its URL."""


def reads(run: Run, settings: KeysExport) -> list[Place]:
    """The shards that the file names."""
    prefixes = [f"{source.name}/" if source.name else "" for source in run.pool.sources]
    return [(shard.name, shard.name.removeprefix(prefixes[shard.source]), shard.url) for shard in run.shards]


def plan(run: Run, settings: KeysExport) -> list[list[Piece]]:
    """The one file."""
    slices = kept_slices(run)
    write = partial(write_keys, run.store, slices, reads(run, settings))
    return [[Piece((open_target(settings).file,), num_rows(slices), write)]]


def write_keys(store: Store, group: Group, places: Sequence[Place], paths: Sequence[Path]) -> None:
    """Writes the keys, those of one shard in memory at a time.

    Args:
        store: the workspace.
        group: the kept rows of each shard that has any.
        places: all shards.
        paths: of the one file.
    """
    (path,) = paths
    row_groups = dict.fromkeys(range(len(places)), (0, 0))
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        first = 0
        for piece in group:
            # The writer's own limit of a row group: a shard with more rows has several.
            table, size = read_kept(store, piece, SCHEMA.names), 1 << 20
            writer.write_table(table, row_group_size=size)
            stop = first + -(-table.num_rows // size)
            row_groups[piece.shard] = first, stop
            first = stop
        shards = [(*place, *row_groups[i]) for i, place in enumerate(places)]
        writer.add_key_value_metadata({SHARDS: json.dumps(shards)})
