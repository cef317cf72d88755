"""Runs over pools that are embedded already, written by hand: for steps that start from embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.embeddings import to_unit_float16
from pipeline.artifact import Artifact, publish_part, read_columns
from pipeline.columns import embedding_field, fixed_binary
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.storage import Store


def lumps(rows: int, dims: int, seed: int = 0, spread: float = 0.15) -> NDArray[np.float16]:
    """Unit rows around a few directions, some of them nearly the same."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, dims))
    x_ND = centres[rng.integers(0, 6, rows)] + spread * rng.standard_normal((rows, dims))
    twins = rng.integers(0, rows, rows // 3)
    x_ND[rng.integers(0, rows, rows // 3)] = x_ND[twins] + 0.02 * rng.standard_normal((rows // 3, dims))
    return to_unit_float16(x_ND)[0]


def embedded_run(
    folder: Path,
    x_ND: NDArray[np.float16],
    *,
    shards: int = 4,
    workers: int = 2,
    threads: int = 1,
    order: Sequence[int] | None = None,
    columns: Mapping[str, Sequence[object]] | None = None,
) -> Run:
    """A run whose samples and embeddings of a model `raw` lie in a workspace.

    Row i has the uid 32 digits of 7919 i, so the order of uids is not that of rows.

    Args:
        folder: of the workspace.
        x_ND: embeddings; zero rows count as not embedded.
        shards: the rows are dealt to.
        workers: of the run.
        threads: of the run.
        order: in which shard j holds its rows' turn; a permutation of the shards.
        columns: further columns of `samples`.
    """
    store = Store(str(folder))
    pool = Pool.model_validate({"format": "webdataset", "path": str(folder)})
    run = Run(store, pool, [], seed=0, models={}, workers=workers, threads=threads, progress=Progress())
    dealt = np.array_split(np.arange(len(x_ND)), shards)
    sample_parts, embedding_parts = [], []
    for number, which in enumerate(order or range(shards)):
        rows = dealt[which]
        name = f"{number:02d}.tar"
        uid = [uid_of(int(row)) for row in rows]
        table = {"uid": pa.array(uid, pa.binary(16)), "shard": [name] * len(rows), "row": np.arange(len(rows))}
        table |= {key: [values[row] for row in rows] for key, values in (columns or {}).items()}
        samples = pa.table(table)
        field = embedding_field("embedding", x_ND.shape[1])
        embedded = pa.table([fixed_binary(x_ND[rows], x_ND[rows].any(axis=1))], schema=pa.schema([field]))
        draft = Part(name, f"p{which}", "", 0, 0, "", {"kept": len(rows)})
        sample_parts.append(publish_part(store, "samples/x", draft, [samples], samples.schema))
        embedding_parts.append(publish_part(store, "raw.image/x", draft, [embedded], embedded.schema))
    run.artifacts["samples"] = Artifact("samples", "samples/x", tuple(sample_parts))
    run.embeddings["raw", "image"] = Artifact("raw.image", "raw.image/x", tuple(embedding_parts))
    run.add_verdicts(_all_kept(store, sample_parts))
    return run


def uid_of(row: int) -> bytes:
    """The uid of a row."""
    return (row * 7919 % 104729).to_bytes(16, "big")


def verdicts(run: Run, artifact: Artifact) -> dict[str, dict[str, object]]:
    """What a step said of each row, by uid in hex: `kept`, `reason`, and its details."""
    said: dict[str, dict[str, object]] = {}
    for sample_part, part in zip(run.samples.parts, artifact.parts, strict=True):
        uids = read_columns(run.store, sample_part.path, ["uid"])["uid"].to_pylist()
        for uid, row in zip(uids, read_columns(run.store, part.path).to_pylist(), strict=True):
            detail = row.pop("detail", None) or {}
            said[uid.hex()] = {**row, **detail}
    return said


def _all_kept(store: Store, parts: Sequence[Part]) -> Artifact:
    made = []
    for part in parts:
        table = pa.table({"kept": np.ones(part.rows, dtype=bool), "reason": pa.nulls(part.rows, pa.string())})
        draft = Part(part.shard, part.id, "", 0, 0, "", {"in": part.rows, "kept": part.rows}, mask="all")
        made.append(publish_part(store, "unique_uid/x", draft, [table], table.schema))
    return Artifact("unique_uid", "unique_uid/x", tuple(made))
