"""The ledger: exactly one row for every sample that could be seen in the pool.

Columns: `uid` (32 hexadecimal digits), `shard`, `key`, `verdict` (`kept` | `dropped` | `rejected`), `step`, `reason`,
`detail` (JSON). For a dropped sample, `step` and `reason` say where it ended and `detail` holds that step's numbers;
for a kept one, `detail` holds the numbers of every step that judged it, by step; a rejected one ends in step `samples`.

The rows are sorted by (uid, shard, row) and split by uid prefix into `ledger/<prefix>-<digest>.parquet`, so that `why`
reads one file. `ledger.json`, beside the folder, names the files of the latest run.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import WorkspaceError
from pipeline.artifact import read_columns
from pipeline.integrity import read_sealed, reading
from pipeline.storage import Store

MANIFEST = "ledger.json"

SCHEMA = pa.schema([(name, pa.string()) for name in ("uid", "shard", "key", "verdict", "step", "reason", "detail")])


@dataclass(frozen=True)
class LedgerFile:
    """One file of the ledger: the uids that begin with `prefix`. Size and SHA-256 are missing in older ledgers."""

    prefix: str
    path: str
    rows: int
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Ledger:
    """The ledger of the latest run."""

    digest: str
    digits: int
    files: tuple[LedgerFile, ...]

    @property
    def rows(self) -> int:
        """Rows over all files."""
        return sum(file.rows for file in self.files)


def find_ledger(store: Store) -> Ledger | None:
    """The ledger of the latest run that finished, if any. Raises DamagedError."""
    try:
        record = read_sealed(store, MANIFEST)
    except FileNotFoundError:
        return None
    with reading(store, MANIFEST):
        return Ledger(record["digest"], record["digits"], tuple(LedgerFile(**file) for file in record["files"]))


def open_ledger(store: Store) -> Ledger:
    """The ledger of the latest run. Raises WorkspaceError when no run has finished here."""
    ledger = find_ledger(store)
    if ledger is None:
        raise WorkspaceError(f"{store.url} must be the workspace of a finished run, got no {MANIFEST} in it")
    return ledger


def read_ledger(store: Store) -> Iterator[pa.Table]:
    """The ledger's tables, in the order of their uids."""
    for file in open_ledger(store).files:
        yield read_columns(store, file.path)


def find_rows(store: Store, uid: str) -> list[dict[str, Any]]:
    """The rows of one uid: none, one, or several where it was supplied more than once."""
    ledger = open_ledger(store)
    for file in ledger.files:
        if file.prefix == uid[: ledger.digits]:
            table = read_columns(store, file.path)
            rows = table.filter(pc.equal(table["uid"], uid)).to_pylist()
            return [row | {"detail": json.loads(row["detail"])} for row in rows]
    return []


def ledger_sha256(store: Store) -> str:
    """SHA-256 of the ledger's data: equal for equal verdicts, however they came about."""
    sha256 = hashlib.sha256()
    for table in read_ledger(store):
        for row in table.to_pylist():
            sha256.update(json.dumps(row, sort_keys=True).encode("utf-8", "surrogatepass"))
    return sha256.hexdigest()
