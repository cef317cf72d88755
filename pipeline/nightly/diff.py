"""The samples that a snapshot has and the one before it has not, and the other way round.

    snapshots/diff-<hash>/00000-<hash>.parquet   DIFF_SCHEMA; the rows of the shards whose kept samples differ, in order

Shards whose samples and final verdicts are those of before are not looked at. Of the others, each task compares a few
and writes a file: no row passes through the driver. The folder's hash names the two ledgers that are compared, that of
a file its content: two snapshots may differ between the same ledgers by why shards are gone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from operators.errors import DamagedError
from pipeline.artifact import Artifact, parquet_bytes, publish_beside
from pipeline.ledger_writer import ShardVerdicts, ledger_address, ledger_rows, shard_verdicts
from pipeline.progress import Progress
from pipeline.snapshots import FOLDER
from pipeline.spread import spread
from pipeline.storage import Store, digest

DIFF_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),  # 32 hexadecimal digits
        ("shard", pa.string()),
        ("key", pa.string()),
        ("change", pa.string()),  # `added` | `removed`
        ("step", pa.string()),  # what drops a removed sample now; null where its shard is not used any more
        ("reason", pa.string()),  # why, or `shard_changed` | `shard_vanished`; null for added ones
    ]
)

_SHARDS_PER_FILE = 16

Row = tuple[str, str, str]
"""What tells one sample from another: uid, shard, key. (A uid alone may have been supplied twice.)"""


@dataclass(frozen=True)
class Side:
    """One of the two sides: the samples and the verdicts about them, `unique_uid` first."""

    samples: Artifact
    verdicts: Sequence[Artifact]

    @property
    def ledger(self) -> str:
        """The address of its ledger."""
        return ledger_address(self.samples, self.verdicts)


@dataclass(frozen=True)
class Pair:
    """A shard on both sides; None where a side has it not. `gone` is why the second has not."""

    before: ShardVerdicts | None
    after: ShardVerdicts | None
    gone: str = ""


@dataclass(frozen=True)
class File:
    """A file of a diff, and how many rows of each change are in it."""

    path: str
    added: int
    removed: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Diff:
    """What changed: how many samples, and the files that list them."""

    added: int = 0
    removed: int = 0
    files: tuple[File, ...] = ()

    def record(self) -> dict[str, Any]:
        """As a snapshot holds it."""
        return asdict(self)


def write_diff(
    store: Store, before: Side | None, after: Side, gone: Mapping[str, str], *, workers: int, progress: Progress
) -> Diff:
    """Compares two sides and writes what differs, or finds it written.

    Args:
        store: the workspace of both.
        before: None where there is nothing before: all that is kept is added.
        after: the later side.
        gone: why shards of the former are not in the latter, by name.
        workers: CPU workers.
        progress: of the job.
    """
    pairs = find_pairs(before, after, gone)
    folder = f"{FOLDER}/diff-{digest(before and before.ledger, after.ledger)}"
    items = [
        (f"{folder}/{number:05d}", pairs[start : start + _SHARDS_PER_FILE])
        for number, start in enumerate(range(0, len(pairs), _SHARDS_PER_FILE))
    ]
    found = []
    with progress.step("diff", len(pairs), unit="shards") as shown:
        for file, shards in spread(partial(_write, store), items, workers=workers):
            found += [file] if file else []
            shown.advance(shards)
    files = tuple(sorted(found, key=lambda file: file.path))
    return Diff(sum(file.added for file in files), sum(file.removed for file in files), files)


def find_pairs(before: Side | None, after: Side, gone: Mapping[str, str]) -> list[Pair]:
    """The shards whose kept samples may differ, in the order of their names."""
    sides = [_by_shard(side) if side else {} for side in (before, after)]
    names = sorted(sides[0].keys() | sides[1].keys())
    both = [(name, sides[0].get(name), sides[1].get(name)) for name in names]
    return [
        Pair(old and old[1], new and new[1], gone.get(name, ""))
        for name, old, new in both
        if old is None or new is None or old[0] != new[0]
    ]


def compare_rows(before: pa.Table | None, after: pa.Table | None, gone: str) -> pa.Table:
    """The rows of `DIFF_SCHEMA` of one shard.

    Args:
        before: its rows of the earlier ledger; None where there are none.
        after: those of the later one.
        gone: the reason of what is not in the latter at all.
    """
    old, new = _kept(before), _fates(after)
    added = [row for row, fate in new.items() if fate[0] == "kept" and row not in old]
    rows: list[tuple[str | None, ...]] = [(*row, "added", None, None) for row in added]
    for row in old:
        verdict, step, reason = new.get(row, ("", None, gone or "shard_changed"))
        if verdict != "kept":
            rows.append((*row, "removed", step, reason))
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[]] * 6, schema=DIFF_SCHEMA)


def _by_shard(side: Side) -> dict[str, tuple[tuple[str, str], ShardVerdicts]]:
    """Name -> (what decides about the kept samples: the part of `samples` and the mask, where the verdicts lie)."""
    columns = side.samples.column("shard"), side.samples.column("id"), side.verdicts[-1].column("mask")
    units = shard_verdicts(side.samples, side.verdicts)
    return {name: ((id_, mask), unit) for name, id_, mask, unit in zip(*columns, units, strict=True)}


def _write(store: Store, item: tuple[str, Sequence[Pair]]) -> tuple[File | None, int]:
    """Writes the file of some shards, where there is anything to write; also gives their number.

    Args:
        store: the workspace.
        item: what the file's name begins with, and the shards.
    """
    name, pairs = item
    tables = []
    for pair in pairs:
        after = ledger_rows(store, 1, 1, pair.after) if pair.after else None
        tables.append(compare_rows(_earlier_rows(store, pair.before), after, pair.gone))
    table = pa.concat_tables(tables)
    if not table.num_rows:
        return None, len(pairs)
    data = parquet_bytes(table)
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{name}-{sha256[:16]}.parquet"
    publish_beside(store, path, data)
    added = table["change"].to_pylist().count("added")
    return File(path, added, table.num_rows - added, len(data), sha256), len(pairs)


def _earlier_rows(store: Store, unit: ShardVerdicts | None) -> pa.Table | None:
    """The rows of a shard's earlier ledger; None where a part of it was lost, and its shard is judged anew as all new.

    Raises:
        DamagedError: a part is there and is not what was written.
    """
    try:
        return ledger_rows(store, 1, 1, unit) if unit else None
    except DamagedError:
        if unit is None or all(store.exists(path) for path in (unit.samples, *(path for _, path in unit.verdicts))):
            raise
        return None


def _kept(table: pa.Table | None) -> list[Row]:
    return [row for row, fate in _fates(table).items() if fate[0] == "kept"]


def _fates(table: pa.Table | None) -> dict[Row, tuple[str, str | None, str | None]]:
    """Each row's (verdict, step, reason). Of rows that are equal in all three, which are rejected but for one, that."""
    if table is None:
        return {}
    found: dict[Row, tuple[str, str | None, str | None]] = {}
    names = ("uid", "shard", "key", "verdict", "step", "reason")
    for uid, shard, key, *fate in zip(*(table[name].to_pylist() for name in names), strict=True):
        if found.get((uid, shard, key), ("",))[0] != "kept":
            found[uid, shard, key] = tuple(fate)
    return found
