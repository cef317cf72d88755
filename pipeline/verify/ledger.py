"""The arithmetic of the recorded run: its ledger against the verdicts that it was made from, and `summary.json`.

The rows that the verdict parts give and those of the ledger's files are counted and their hashes added up, file by
file: sums do not depend on order, so nothing is shuffled and no row reaches the driver. Two sums are equal when the
rows are, but for one chance in 2^128.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from operators.errors import DamagedError
from pipeline.artifact import Artifact, read_columns, read_manifest
from pipeline.integrity import Checksum, what_is_wrong
from pipeline.ledger import MANIFEST, SCHEMA, Ledger, LedgerFile, find_ledger
from pipeline.ledger_writer import ShardVerdicts, ledger_address, ledger_rows, shard_verdicts
from pipeline.record import RECORD
from pipeline.spread import spread
from pipeline.storage import Store
from pipeline.summary import SUMMARY
from pipeline.verify.folders import streamed
from pipeline.verify.parts import Damage, Tally, check_file

_BATCH = 64
_BITS = 128


@dataclass
class Sum:
    """Rows of the ledger, in any order.

    Attributes:
        hashes: of all rows, added up.
        verdicts: (verdict, step, reason) -> rows.
    """

    hashes: int = 0
    verdicts: Counter[tuple[str, str | None, str | None]] = field(default_factory=Counter)

    def add(self, other: "Sum") -> None:
        """Takes in other rows."""
        self.hashes = (self.hashes + other.hashes) % 2**_BITS
        self.verdicts.update(other.verdicts)

    @property
    def rows(self) -> int:
        """How many."""
        return self.verdicts.total()

    def unlike(self, other: "Sum") -> str:
        """Its verdicts, of those that another sum has another number of: `3 dropped by prune: over_quota`."""
        keys = sorted({*self.verdicts, *other.verdicts}, key=str)
        words = [_describe(key, self.verdicts[key]) for key in keys if self.verdicts[key] != other.verdicts[key]]
        return ", ".join([f"{self.rows} rows", *words])


@dataclass(frozen=True)
class LedgerState:
    """What was found of the ledger and the summary.

    Attributes:
        state: what to say of it, other than that it is sound or damaged.
        tally: its files, rows, bytes, and damage.
    """

    state: str
    tally: Tally


def check_ledger(store: Store, record: Mapping[str, Any] | None, *, workers: int) -> LedgerState:
    """Checks the ledger and the summary of a recorded run.

    Args:
        store: the workspace.
        record: of the run; None where it cannot be read, and only the ledger's files are looked at.
        workers: CPU workers.
    """
    try:
        ledger = find_ledger(store)
    except DamagedError as error:
        return LedgerState("", Tally(damage=(Damage(MANIFEST, "what was written", what_is_wrong(error)),)))
    if ledger is None:
        return LedgerState("", Tally(damage=(Damage(MANIFEST, f"there, as {RECORD} is", "no such file"),)))
    found: dict[str, Sum] = {}
    tally = Tally()
    for prefix, own, summed in spread(partial(_sum_file, store), ledger.files, workers=workers):
        found[prefix] = summed
        tally += own
    if tally.damage:
        return LedgerState("", tally)
    if record is None:
        return LedgerState(f"not compared: there is no sound {RECORD}", tally)
    try:
        address, batches = streamed(partial(_hand_out, store, record), partial(_sum_shards, store, ledger), workers)
        expected = _merged(batches)
    except DamagedError:
        return LedgerState("not compared: what it was made from is damaged", tally)
    if address != ledger.digest:
        return LedgerState("of another run: one was stopped before it had recorded its own", tally)
    tally += Tally(damage=(*_compare(ledger, expected, found), *_check_summary(store, ledger, expected)))
    return LedgerState("", tally)


def sums(table: pa.Table) -> dict[str, Sum]:
    """The sums of rows by their `prefix`; columns of the ledger and `prefix`."""
    result: dict[str, Sum] = {}
    columns = (table[name].to_pylist() for name in ("prefix", *SCHEMA.names))
    for prefix, *row in zip(*columns, strict=True):
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        one = result.setdefault(prefix, Sum())
        hashed = hashlib.blake2b(text, digest_size=_BITS // 8).digest()
        one.hashes = (one.hashes + int.from_bytes(hashed, "little")) % 2**_BITS
        one.verdicts[row[3], row[4], row[5]] += 1
    return result


def _sum_file(store: Store, file: LedgerFile) -> tuple[str, Tally, Sum]:
    """Prefix, tally, and the sum of the rows of one file."""
    tally = check_file(store, file.path, Checksum(file.size, file.sha256) if file.sha256 else None)
    if tally.damage:
        return file.prefix, tally, Sum()
    table = read_columns(store, file.path)
    named = table.append_column("prefix", pa.array([file.prefix] * table.num_rows, pa.string()))
    wrong = [Damage(file.path, f"of {file.rows} rows", f"{table.num_rows}")] if table.num_rows != file.rows else []
    return file.prefix, tally + Tally(0, table.num_rows, 0, tuple(wrong)), sums(named).get(file.prefix, Sum())


def _hand_out(store: Store, record: Mapping[str, Any]) -> Iterator[Any]:
    """The ledger's address, then where the verdicts lie, in batches."""
    samples = _recorded(store, record, "samples")
    verdicts = [_recorded(store, record, name) for name in record["verdicts"]]
    yield (ledger_address(samples, verdicts),)
    units = shard_verdicts(samples, verdicts)
    for start in range(0, len(units), _BATCH):
        yield units[start : start + _BATCH]


def _recorded(store: Store, record: Mapping[str, Any], name: str) -> Artifact:
    place = record["artifacts"][name]
    try:
        return read_manifest(store, place["folder"], place["manifest"])
    except FileNotFoundError as error:
        raise DamagedError(f"{place['manifest']} must be there, got no such file") from error


def _sum_shards(store: Store, ledger: Ledger, units: Sequence[ShardVerdicts]) -> dict[str, Sum] | None:
    """The sums that the verdicts about some shards give, by prefix; None where they cannot be read."""
    result: dict[str, Sum] = {}
    try:
        for unit in units:
            for prefix, summed in sums(ledger_rows(store, ledger.digits, 1, unit)).items():
                result.setdefault(prefix, Sum()).add(summed)
    except DamagedError:
        return None
    return result


def _merged(batches: Iterator[dict[str, Sum] | None]) -> dict[str, Sum]:
    result: dict[str, Sum] = {}
    for batch in batches:
        if batch is None:
            raise DamagedError("a part of the verdicts must be readable, got another")
        for prefix, summed in batch.items():
            result.setdefault(prefix, Sum()).add(summed)
    return result


def _compare(ledger: Ledger, expected: Mapping[str, Sum], found: Mapping[str, Sum]) -> Iterator[Damage]:
    paths = {file.prefix: file.path for file in ledger.files}
    for prefix in sorted({*expected, *found}):
        wanted, got = expected.get(prefix, Sum()), found.get(prefix, Sum())
        if wanted != got:
            rule = f"one row for each sample with uid {prefix}..., with its verdict: {wanted.unlike(got)}"
            what = got.unlike(wanted) if wanted.verdicts != got.verdicts else f"{got.rows} rows with other content"
            yield Damage(paths.get(prefix, MANIFEST), rule, what)


def _check_summary(store: Store, ledger: Ledger, expected: Mapping[str, Sum]) -> Iterator[Damage]:
    """Compares the sums of `summary.json` with those of the verdicts, where it is of the same run."""
    try:
        summary = store.read_json(SUMMARY)
        if summary.get("ledger", ledger.digest) != ledger.digest:
            return  # a run was stopped before it had written its own
        written = {name: summary[name] for name in ("samples_seen", "kept", "dropped", "rejected")}
    except FileNotFoundError:
        return  # the same
    except Exception as error:  # no JSON, or of another shape
        yield Damage(SUMMARY, "a summary", f"{type(error).__name__}: {error}")
        return
    whole = Sum()
    for summed in expected.values():
        whole.add(summed)
    dropped: dict[str, dict[str, int]] = {step: {} for step in written["dropped"]}
    sums_of: dict[str, Any] = {"samples_seen": whole.rows, "kept": 0, "dropped": dropped, "rejected": {}}
    for (verdict, step, reason), rows in whole.verdicts.items():
        if verdict == "kept":
            sums_of["kept"] += rows
        elif verdict == "dropped":
            dropped.setdefault(str(step), {})[str(reason)] = rows
        else:
            sums_of["rejected"][str(reason)] = rows
    for name, value in sums_of.items():
        if written[name] != value:
            yield Damage(SUMMARY, f"of {name} {value}, as the ledger", f"{written[name]}")


def _describe(key: tuple[str, str | None, str | None], rows: int) -> str:
    verdict, step, reason = key
    return f"{rows} {verdict}" if step is None else f"{rows} {verdict} by {step}: {reason}"
