"""Ray Datasets as pools, and what is kept of a pool as a Ray Dataset."""

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from pyarrow.fs import FSSpecHandler, PyFileSystem

from operators.errors import InputError
from pipeline.export.slices import kept_slices, read_kept
from pipeline.pool import Pool
from pipeline.readers.columns import IMAGE_COLUMNS, TEXT_COLUMNS, resolve_columns
from pipeline.resuming import open_file
from pipeline.run import Run
from pipeline.storage import Store

_WANTED = {"encoded images": IMAGE_COLUMNS, "captions": TEXT_COLUMNS}


def write_pool(dataset: ray.data.Dataset, store: Store) -> Pool:
    """Writes a Ray Dataset below a workspace, as Parquet shards.

    Args:
        dataset: with columns of encoded images and captions, under names that a Parquet pool knows.
        store: the workspace.

    Raises:
        InputError: it has no such columns, or no rows.
    """
    schema = dataset.schema()
    if schema is None:
        raise InputError("the Ray Dataset must hold at least one row, got none")
    for what, known in _WANTED.items():
        if not set(known) & set(schema.names):
            raise InputError(
                f"the Ray Dataset must have a column of {what} ({', '.join(known)}), got {', '.join(schema.names)}"
            )
    folder = f"datasets/{uuid.uuid4().hex[:16]}"
    dataset.write_parquet(store.path(folder), filesystem=PyFileSystem(FSSpecHandler(store.filesystem)))
    source = {"format": "parquet", "path": f"{store.url}/{folder}/*.parquet", "storage": dict(store.options)}
    pool = Pool.model_validate(source)
    with store.open(next(iter(store.find(folder)))) as file:
        kinds = pq.read_schema(file)
    try:
        resolve_columns(kinds, pool.sources[0], "the Ray Dataset")
    except InputError as error:
        store.remove(folder)
        found = ", ".join(f"{field.name} of {field.type}" for field in kinds)
        rule = "the Ray Dataset must have its encoded images in a column of bytes"
        raise InputError(f"{rule}, got {found}") from error
    return pool


def kept_rows(run: Run, score: str) -> ray.data.Dataset:
    """The rows that a run kept of a pool that `write_pool` wrote, on a Ray that is up.

    Args:
        run: that has finished.
        score: title of a score step.

    Returns:
        the rows as they were, with a column of the score, float64.
    """
    assert len(run.pool.sources) == 1
    scores = run.artifacts[score].parts
    items = [
        {"piece": piece, "shard": run.shards[piece.shard].url, "scores": scores[piece.shard].path}
        for piece in kept_slices(run)
    ]
    read = partial(_read, run.store, run.pool.sources[0].storage, score)
    return ray.data.from_items(items).map_batches(read, batch_size=1)


def _read(store: Store, storage: Mapping[str, Any], score: str, item: Mapping[str, Sequence[Any]]) -> pa.Table:
    """The kept rows of one shard. A row's key is its number in the file."""
    (piece,), (shard,), (scores,) = item["piece"], item["shard"], item["scores"]
    kept = read_kept(store, piece, ["key"], {score: (scores, "score")})
    with open_file(shard, storage, read_ahead=False) as file:
        rows = pq.read_table(file)
    return rows.take(pa.array(map(int, kept["key"].to_pylist()), pa.int64())).append_column(score, kept[score])
