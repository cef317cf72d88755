"""A clip-retrieval folder of the kept samples, row by row.

    img_emb/img_emb_{i}.npy              float16 unit rows
    text_emb/text_emb_{i}.npy            the same of the captions, where the run has embedded them
    metadata/metadata_{i}.parquet        SCHEMA

Rows are in the order of (shard name, row). The uid is a column of the metadata, so a pool made of the folder has the
same uids; `pool.format: clip_retrieval` reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.array_files import IMAGE_ARRAY, TEXT_ARRAY
from pipeline.artifact import Artifact
from pipeline.export.arrays import find_embeddings, width_of, write_embeddings
from pipeline.export.parquet import describe
from pipeline.export.settings import ClipRetrievalExport
from pipeline.export.slices import Group, cut_every, kept_slices, num_rows, read_kept
from pipeline.export.target import Piece
from pipeline.run import Run
from pipeline.storage import Store

VERSION = 1

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("metadata", pa.string()),
    ]
)
_COLUMNS = ("uid", "shard", "key", "caption", "width", "height", "metadata")


@dataclass(frozen=True)
class Work:
    """What one task is told.

    Attributes:
        store: the workspace.
        group: which rows.
        arrays: for each array its width, and for each slice its shard's part.
    """

    store: Store
    group: Group
    arrays: tuple[tuple[int, tuple[str, ...]], ...]


def reads(run: Run, settings: ClipRetrievalExport) -> dict[str, str]:
    """The embeddings that the files depend on."""
    return {name: artifact.digest for name, artifact in _arrays(run, settings).items()}


def plan(run: Run, settings: ClipRetrievalExport) -> list[list[Piece]]:
    """The files, three or two for each task; those of no row when nothing was kept, so that widths can be read."""
    arrays = _arrays(run, settings)
    widths = {name: width_of(run.store, artifact) for name, artifact in arrays.items()}
    pieces = []
    for i, group in enumerate(cut_every(kept_slices(run), settings.rows_per_file) or [()]):
        parts = tuple(
            (widths[name], tuple(artifact.parts[piece.shard].path for piece in group))
            for name, artifact in arrays.items()
        )
        names = (f"metadata/metadata_{i}.parquet", *(f"{name}/{name}_{i}.npy" for name in arrays))
        pieces.append(Piece(names, num_rows(group), partial(write_files, Work(run.store, group, parts))))
    return [pieces]


def _arrays(run: Run, settings: ClipRetrievalExport) -> dict[str, Artifact]:
    arrays = {IMAGE_ARRAY: find_embeddings(run, settings.model, "image")}
    if (settings.model, "text") in run.embeddings:
        arrays[TEXT_ARRAY] = run.embeddings[settings.model, "text"]
    return arrays


def write_files(work: Work, paths: Sequence[Path]) -> None:
    """Writes one table and the arrays beside it, the rows of one shard in memory at a time."""
    table, *arrays = paths
    with pq.ParquetWriter(table, SCHEMA, compression="zstd") as writer:
        for piece in work.group:
            writer.write_table(describe(read_kept(work.store, piece, _COLUMNS), SCHEMA))
    for path, (width, parts) in zip(arrays, work.arrays, strict=True):
        write_embeddings(work.store, work.group, parts, width, path)
