"""Writing the ledger: the verdicts of every step about every sample, brought together by uid.

What the ledger holds, and how it is read, is in `pipeline.ledger`.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifact import Artifact, parquet_bytes, read_columns
from pipeline.integrity import sealed
from pipeline.ledger import MANIFEST, SCHEMA, Ledger, LedgerFile, find_ledger
from pipeline.parts import Part
from pipeline.run import Run
from pipeline.shuffle import PARTITION, num_partitions, shuffle
from pipeline.storage import Store, digest

LEDGER_VERSION = 1
_ROWS_PER_FILE = 1_000_000


@dataclass(frozen=True)
class ShardVerdicts:
    """Where the verdicts about one shard lie: the samples, then (step title, verdict part) in order."""

    samples: str
    verdicts: tuple[tuple[str, str], ...]


def write_ledger(run: Run, verdicts: Sequence[Artifact]) -> Artifact:
    """Writes the ledger of a run, or finds that it is there already.

    Args:
        run: the run.
        verdicts: the verdict artifacts in order, `unique_uid` first.

    Returns:
        an artifact without parts of its own, for the summary.
    """
    started = time.monotonic()
    address = ledger_address(run.samples, verdicts)
    current = find_ledger(run.store)
    if current and current.digest == address and _is_whole(run.store, current):
        _remove_others(run.store, current)
        return _as_artifact(current, reused=True)
    digits = max(1, len(f"{run.samples.rows // _ROWS_PER_FILE:x}"))
    units = shard_verdicts(run.samples, verdicts)
    partitions = min(16**digits, num_partitions(run.samples.rows))
    with run.progress.step("ledger", run.samples.rows) as progress:
        written = shuffle(
            units,
            partial(ledger_rows, run.store, digits, partitions),
            partial(_write_files, run.store, address),
            partitions=partitions,
            workers=run.workers,
        )
        files = []
        for receipts in written:
            files += [LedgerFile(**receipt) for receipt in receipts.to_pylist()]
            progress.advance(sum(receipts["rows"].to_pylist()))
    ledger = Ledger(address, digits, tuple(sorted(files, key=lambda file: file.prefix)))
    assert ledger.rows == run.samples.rows, f"the ledger has {ledger.rows} rows for {run.samples.rows} samples"
    run.store.replace(MANIFEST, sealed(asdict(ledger)))
    _remove_others(run.store, ledger)
    return _as_artifact(ledger, seconds=round(time.monotonic() - started, 3))


def ledger_address(samples: Artifact, verdicts: Sequence[Artifact]) -> str:
    """Names the ledger of these samples and verdicts."""
    return digest(LEDGER_VERSION, samples.digest, [(artifact.step, artifact.digest) for artifact in verdicts])


def shard_verdicts(samples: Artifact, verdicts: Sequence[Artifact]) -> list[ShardVerdicts]:
    """What the ledger is made from, shard by shard."""
    return [
        ShardVerdicts(part.path, tuple((artifact.step, artifact.parts[i].path) for artifact in verdicts))
        for i, part in enumerate(samples.parts)
    ]


def ledger_rows(store: Store, digits: int, partitions: int, unit: ShardVerdicts) -> pa.Table:
    """The rows of one shard, with the columns `PARTITION`, `prefix` and `row` beside those of the ledger."""
    samples = read_columns(store, unit.samples, ["uid", "shard", "key", "row"])
    num_rows = samples.num_rows
    verdict = np.full(num_rows, "kept", dtype=object)
    step, reason, detail = (np.full(num_rows, None, dtype=object) for _ in range(3))
    seen: list[dict[str, Any]] = [{} for _ in range(num_rows)]
    for position, (title, path) in enumerate(unit.verdicts):
        table = read_columns(store, path)
        details = table["detail"].to_pylist() if "detail" in table.column_names else [None] * num_rows
        for i, (kept, why, numbers) in enumerate(
            zip(table["kept"].to_pylist(), table["reason"].to_pylist(), details, strict=True)
        ):
            if kept is None:
                continue
            facts = {name: value for name, value in (numbers or {}).items() if value is not None}
            if not kept:
                verdict[i] = "dropped" if position else "rejected"
                step[i], reason[i], detail[i] = title if position else "samples", why, facts
            elif facts:
                seen[i][title] = facts
    texts = [_json(seen[i] if detail[i] is None else detail[i]) for i in range(num_rows)]
    uids = [uid.hex() for uid in samples["uid"].to_pylist()]
    return pa.table(
        {
            PARTITION: pa.array([int(uid[:digits], 16) % partitions for uid in uids], pa.int32()),
            "prefix": pa.array([uid[:digits] for uid in uids], pa.string()),
            "uid": pa.array(uids, pa.string()),
            "shard": samples["shard"],
            "key": samples["key"],
            "row": samples["row"],
            "verdict": pa.array(verdict, pa.string()),
            "step": pa.array(step, pa.string()),
            "reason": pa.array(reason, pa.string()),
            "detail": pa.array(texts, pa.string()),
        }
    )


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _write_files(store: Store, address: str, block: pa.Table) -> pa.Table:
    """Writes the files of a block that holds each of its prefixes whole; gives a receipt for each."""
    prefixes = sorted(pc.unique(block["prefix"]).to_pylist())
    paths, counts, sizes, hashes = [], [], [], []
    for prefix in prefixes:
        rows = block.filter(pc.equal(block["prefix"], prefix))
        rows = rows.sort_by([("uid", "ascending"), ("shard", "ascending"), ("row", "ascending")])
        paths.append(f"ledger/{prefix}-{address}.parquet")
        counts.append(rows.num_rows)
        data = parquet_bytes(rows.select(SCHEMA.names))
        sizes.append(len(data))
        hashes.append(hashlib.sha256(data).hexdigest())
        store.replace(paths[-1], data)
    types = {"prefix": pa.string(), "path": pa.string(), "rows": pa.int64(), "size": pa.int64(), "sha256": pa.string()}
    return pa.table([prefixes, paths, counts, sizes, hashes], schema=pa.schema(types))


def _as_artifact(ledger: Ledger, *, reused: bool = False, seconds: float = 0.0) -> Artifact:
    counts = {"in": ledger.rows, "kept": ledger.rows}
    part = Part("", ledger.digest, MANIFEST, ledger.rows, 0, "", counts)
    rows_new = 0 if reused else ledger.rows
    return Artifact("ledger", "ledger", (part,), reused=reused, seconds=seconds, rows_new=rows_new)


def _is_whole(store: Store, ledger: Ledger) -> bool:
    sizes = store.find("ledger")
    return all(sizes.get(file.path) == (file.size or sizes.get(file.path, 0)) for file in ledger.files)


def _remove_others(store: Store, ledger: Ledger) -> None:
    """Removes the files of earlier ledgers, which `ledger.json` no longer names."""
    current = {file.path for file in ledger.files}
    for path in store.find("ledger"):
        if path not in current:
            store.remove(path)
