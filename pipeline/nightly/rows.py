"""What a snapshot said of one sample, where the ledger that is there is another one's.

A uid's shard is in the present ledger, or else among those that only the snapshot has: they alone are read.
"""

import json
from typing import Any

import pyarrow.compute as pc

from pipeline.ledger import find_ledger, find_rows
from pipeline.ledger_writer import ledger_rows, shard_verdicts
from pipeline.nightly.shards import known_shards
from pipeline.record import read_artifacts, read_record
from pipeline.snapshots import read_snapshot
from pipeline.storage import Store


def find_rows_of(store: Store, number: int, uid: str) -> list[dict[str, Any]]:
    """The rows of one uid as the ledger of a snapshot had them, like `pipeline.ledger.find_rows`.

    Raises:
        WorkspaceError: there is no such snapshot, or no run has finished here.
        DamagedError: something of it is not what was written.
    """
    snapshot = read_snapshot(store, number)
    present = find_rows(store, uid)
    ledger = find_ledger(store)
    if ledger is not None and ledger.digest == snapshot["ledger"]:
        return present
    now = known_shards(store, read_record(store))
    then = known_shards(store, snapshot)
    suspects = {row["shard"] for row in present} | {name for name, id_ in then.items() if now.get(name) != id_}
    artifacts = read_artifacts(store, snapshot)
    samples = artifacts["samples"]
    units = shard_verdicts(samples, [artifacts[name] for name in snapshot["verdicts"]])
    found: list[dict[str, Any]] = []
    for name, unit in zip(samples.column("shard"), units, strict=True):
        if name in suspects:
            table = ledger_rows(store, 1, 1, unit)
            found += table.filter(pc.equal(table["uid"], uid)).to_pylist()
    found.sort(key=lambda row: (row["shard"], row["row"]))
    names = ("uid", "shard", "key", "verdict", "step", "reason")
    return [{name: row[name] for name in names} | {"detail": json.loads(row["detail"])} for row in found]
