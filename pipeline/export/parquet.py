"""A table of the kept samples, in files of at most a million rows: `part-00000.parquet`, `part-00001.parquet`, ...

Columns: `uid` (32 hexadecimal digits), `shard`, `key`, `url`, `text`, `original_width` and `original_height` (those of
the metadata where it has them, else those of the stored image), `metadata` (JSON), and a double for each score step,
under the step's name (`<name>_score` where that is taken). Rows are in the order of (shard name, row). The names are
those of DataComp's metadata (Gadre et al. 2023, arXiv 2304.14108).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact import Artifact, read_schema
from pipeline.export.settings import ParquetExport
from pipeline.export.slices import Group, cut_every, kept_slices, num_rows, read_kept
from pipeline.export.target import Piece
from pipeline.run import Run
from pipeline.storage import Store

VERSION = 1
ROWS_PER_FILE = 1_000_000

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
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
        names: of the score columns.
        scores: for each slice, column name -> the shard's part of that score.
    """

    store: Store
    group: Group
    names: tuple[str, ...]
    scores: tuple[Mapping[str, str], ...]

    @property
    def schema(self) -> pa.Schema:
        """Of the file."""
        return pa.schema([*SCHEMA, *((name, pa.float64()) for name in self.names)])


def reads(run: Run, settings: ParquetExport) -> list[tuple[str, str]]:
    """The scores that the files depend on."""
    return [(name, artifact.digest) for name, artifact in _scores(run).items()]


def plan(run: Run, settings: ParquetExport) -> list[list[Piece]]:
    """The files; one without rows when nothing was kept, so that there is always a schema to read."""
    scores = _scores(run)
    pieces = []
    for number, group in enumerate(cut_every(kept_slices(run), ROWS_PER_FILE) or [()]):
        parts = tuple({name: scores[name].parts[piece.shard].path for name in scores} for piece in group)
        work = Work(run.store, group, tuple(scores), parts)
        pieces.append(Piece((f"part-{number:05d}.parquet",), num_rows(group), partial(write_table, work)))
    return [pieces]


def _scores(run: Run) -> dict[str, Artifact]:
    """The score artifacts by the names of their columns."""
    return {
        f"{name}_score" if name in SCHEMA.names else name: artifact
        for name, artifact in run.artifacts.items()
        if _has_score(run.store, artifact, len(run.samples.parts))
    }


def _has_score(store: Store, artifact: Artifact, num_shards: int) -> bool:
    first = artifact.parts[0]
    if len(artifact.parts) != num_shards or not first.path.endswith(".parquet"):
        return False
    return "score" in read_schema(store, first.path).names


def write_table(work: Work, paths: Sequence[Path]) -> None:
    """Writes one file, the rows of one shard in memory at a time."""
    (path,) = paths
    with pq.ParquetWriter(path, work.schema, compression="zstd") as writer:
        for piece, scores in zip(work.group, work.scores, strict=True):
            others = {name: (path, "score") for name, path in scores.items()}
            writer.write_table(describe(read_kept(work.store, piece, _COLUMNS, others), work.schema))


def describe(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of the samples table as rows of the export."""
    facts = [json.loads(text) if text else {} for text in rows["metadata"].to_pylist()]
    columns: dict[str, Any] = {name: rows[name] for name in schema.names if name in rows.column_names}
    columns |= {
        "uid": [uid.hex() for uid in rows["uid"].to_pylist()],
        "url": [_text(fact.get("url")) for fact in facts],
        "text": rows["caption"],
    }
    for side in ("width", "height"):
        columns[f"original_{side}"] = [
            _whole(fact.get(f"original_{side}"), stored)
            for fact, stored in zip(facts, rows[side].to_pylist(), strict=True)
        ]
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else otherwise
