"""SemDeDup's files of the kept samples.

    embeddings.npy                       float16 unit rows, in the order of (shard name, row)
    paths.npy                            the uid of each row, as text
    sorted_clusters/cluster_{i}.npy      strings (n, 4): path, row of `embeddings.npy`, distance, cluster

The path is the sample's uid: unlike a key it is unique in a pool, and read again it is taken for the uid. A cluster's
rows stand in the order of their distance, the farthest first, then of their uids. The distance is 1 - cosine to the
centroid, or where the step clusters with `metric: euclidean`, half the squared distance to it. (The released code
writes the similarity under that name when its index is spherical; arXiv 2303.09540, section 3.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import ConfigError
from pipeline.array_files import EMBEDDINGS, PATHS
from pipeline.artifact import Artifact
from pipeline.columns import present
from pipeline.export.arrays import find_embeddings, width_of, write_embeddings, write_header
from pipeline.export.settings import SemdedupExport
from pipeline.export.slices import Group, kept_slices, num_rows, read_kept
from pipeline.export.target import Piece
from pipeline.run import Run
from pipeline.steps.clusters import fit_of
from pipeline.storage import Store

VERSION = 1

ROWS_PER_TASK = 2_000_000
"""Rows whose clusters one task sorts. Each task reads the clusters of all kept rows."""

_TEXT = np.dtype("<U32")
"""What a uid, a row, a cluster and a float64 at full length fit into."""


@dataclass(frozen=True)
class Work:
    """What one task is told.

    Attributes:
        store: the workspace.
        group: all kept rows.
        clusters: for each slice, its shard's part of the clusters.
        first, stop: the clusters that this task writes.
    """

    store: Store
    group: Group
    clusters: tuple[str, ...]
    first: int
    stop: int


def reads(run: Run, settings: SemdedupExport) -> list[str]:
    """The embeddings and clusters that the files depend on."""
    return [find_embeddings(run, settings.model, "image").digest, _clusters(run, settings.step).digest]


def plan(run: Run, settings: SemdedupExport) -> list[list[Piece]]:
    """The embeddings, the paths, and the clusters in as many tasks as their number asks for."""
    vectors, clusters = find_embeddings(run, settings.model, "image"), _clusters(run, settings.step)
    group = kept_slices(run)
    width = width_of(run.store, vectors)
    parts = [vectors.parts[piece.shard].path for piece in group]
    pieces = [
        Piece((EMBEDDINGS,), num_rows(group), partial(_write_vectors, run.store, group, parts, width)),
        Piece((PATHS,), 0, partial(write_paths, run.store, group)),
    ]
    count = len(fit_of(run.store, clusters.info).sizes_K)
    size = -(-count // -(-max(1, num_rows(group)) // ROWS_PER_TASK))
    places = tuple(clusters.parts[piece.shard].path for piece in group)
    for first in range(0, count, size):
        work = Work(run.store, group, places, first, min(count, first + size))
        names = tuple(f"sorted_clusters/cluster_{i}.npy" for i in range(work.first, work.stop))
        pieces.append(Piece(names, 0, partial(write_clusters, work)))
    return [pieces]


def _clusters(run: Run, step: str) -> Artifact:
    artifact = run.clusters.get(step)
    if artifact is None:
        raise ConfigError(f"export step must be one that clusters ({', '.join(run.clusters) or 'none'}), got {step!r}")
    return artifact


def _write_vectors(store: Store, group: Group, parts: Sequence[str], width: int, paths: Sequence[Path]) -> None:
    write_embeddings(store, group, parts, width, paths[0])


def write_paths(store: Store, group: Group, paths: Sequence[Path]) -> None:
    """Writes the uid of every row of a group."""
    (path,) = paths
    with path.open("wb") as file:
        write_header(file, _TEXT, (num_rows(group),))
        for piece in group:
            file.write(_uids(read_kept(store, piece, ["uid"])["uid"]).tobytes())


def write_clusters(work: Work, paths: Sequence[Path]) -> None:
    """Writes some clusters; an empty one is a file without rows."""
    found = []
    start = 0
    for piece, part in zip(work.group, work.clusters, strict=True):
        columns = {name: (part, name) for name in ("cluster", "similarity")}
        table = read_kept(work.store, piece, ["uid"], columns)
        table = table.append_column("row", pa.array(np.arange(start, start + len(piece))))
        cluster_N = table["cluster"].fill_null(-1).to_numpy()
        mine_N = present(table["cluster"]) & (cluster_N >= work.first) & (cluster_N < work.stop)
        found.append(table.filter(pa.array(mine_N)))
        start += len(piece)
    order = [("cluster", "ascending"), ("similarity", "ascending"), ("uid", "ascending")]
    rows = pa.concat_tables(found).sort_by(order) if found else None
    cluster_n = rows["cluster"].to_numpy() if rows else np.zeros(0, np.int32)
    bounds = np.searchsorted(cluster_n, np.arange(work.first, work.stop + 1)).tolist()
    for path, first, stop in zip(paths, bounds[:-1], bounds[1:], strict=True):
        with path.open("wb") as file:
            np.save(file, _strings(rows.slice(first, stop - first)) if rows else np.empty((0, 4), _TEXT))


def _strings(rows: pa.Table) -> NDArray[np.str_]:
    """Rows of one cluster as (n, 4) strings; `repr` of a float is read back as the same float."""
    cells_n4 = np.empty((rows.num_rows, 4), _TEXT)
    cells_n4[:, 0] = _uids(rows["uid"])
    cells_n4[:, 1] = rows["row"].to_numpy().astype(_TEXT)
    cells_n4[:, 2] = [repr(distance) for distance in (1.0 - rows["similarity"].to_numpy()).tolist()]
    cells_n4[:, 3] = rows["cluster"].to_numpy().astype(_TEXT)
    return cells_n4


def _uids(column: pa.ChunkedArray) -> NDArray[np.str_]:
    return np.array([uid.hex() for uid in column.to_pylist()], dtype=_TEXT)
