"""Rejects: the samples that could not be used, counted, and their bytes written out for a look.

    <DIR>/index.csv                              a line for each sample: see `INDEX`
    <DIR>/<reason>/<shard number>-<row>.<ext>    its image, text and JSON as far as they could be read, byte for byte

No name of the pool becomes a name of a file: the keys of a hostile archive stand in the index, as JSON text, and a
member that is no image, text or JSON gets a number and `.bin`. What reading refuses to touch (links, large members,
names that lead elsewhere) is not read here either: such a sample has a line and no file.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import InputError
from operators.rejects import Reason
from pipeline.artifact import Artifact, read_columns
from pipeline.manifests import read_recorded
from pipeline.pool import IMAGE_EXTENSIONS, Pool, Shard, suggest
from pipeline.readers import read_shard
from pipeline.readers.sample import RawSample
from pipeline.record import read_record
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.storage import Store

INDEX = ("reason", "files", "shard", "key", "row", "offset", "bytes", "uid")
"""Columns: `files` are names in the folder of the reason, the rest as in `samples`.

A `shard` or `key` that a terminal or a spreadsheet could take for something to do is a JSON text, in double quotes.
"""

_KNOWN_EXTENSIONS = IMAGE_EXTENSIONS | {"txt", "json"}
_COLUMNS = ["uid", "key", "row", "offset", "bytes"]


@dataclass(frozen=True)
class _Unit:
    """What one task exports: some rejects of one shard.

    Attributes:
        number: of the shard in the pool.
        shard: the shard.
        samples, verdicts: its parts.
        wanted: reason -> how many of its samples, the first ones.
    """

    number: int
    shard: Shard
    samples: str
    verdicts: str
    wanted: Mapping[str, int]


def count_rejects(store: Store, snapshot: int | None = None) -> Counter[tuple[str, str]]:
    """How many samples of the latest run, or of a snapshot, were rejected, by (reason, shard); from manifests alone.

    Raises:
        WorkspaceError: no run has finished here, or there is no such snapshot, or its manifest is lost.
    """
    record = read_record(store, snapshot)
    return _count(read_recorded(store, record["artifacts"][record["verdicts"][0]]))


def check_reason(reason: str | None) -> str | None:
    """A reason for which samples are rejected, or None for all. Raises InputError."""
    known = [str(reason) for reason in Reason]
    if reason is not None and reason not in known:
        raise InputError(f"--reason must be one of {', '.join(known)}, got {reason!r}{suggest(reason, known)}")
    return reason


def export_rejects(run: Run, target: Store, *, reason: str | None = None, limit: int | None = None) -> Counter[str]:
    """Writes the bytes of rejected samples.

    Args:
        run: the latest run of a workspace.
        target: an empty folder, or one that is not there yet.
        reason: only samples rejected for it.
        limit: at most so many samples for each reason, the first of the pool; None exports all.

    Returns:
        reason -> samples that are in the index.

    Raises:
        InputError: there is something in the folder.
    """
    if found := next(iter(target.find("")), None):
        raise InputError(f"{target.url} must be an empty folder or none, got one that holds {found}")
    target.check_writable()
    units = list(_units(run, reason, limit))
    lines: list[tuple[Any, ...]] = []
    work = partial(_export_unit, run.store, run.pool, target)
    with run.progress.step("rejects", sum(sum(unit.wanted.values()) for unit in units)) as progress:
        for found_lines in spread(work, units, workers=run.workers):
            lines += found_lines
            progress.advance(len(found_lines))
    lines.sort()
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(INDEX)
    writer.writerows(line[:1] + line[3:] for line in lines)
    target.replace("index.csv", text.getvalue().encode())
    return Counter(line[0] for line in lines)


def _count(verdicts: Artifact) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for part in verdicts.parts:
        for name, count in part.counts.items():
            kind, _, reason = name.partition(":")
            if kind == "dropped":
                counts[reason, part.shard] += count
    return counts


def _units(run: Run, reason: str | None, limit: int | None) -> Iterator[_Unit]:
    left: dict[str, int] = {}
    for number, (shard, samples, verdicts) in enumerate(
        zip(run.shards, run.samples.parts, run.verdicts[0].parts, strict=True)
    ):
        wanted = {}
        for name, count in verdicts.counts.items():
            kind, _, why = name.partition(":")
            if kind == "dropped" and reason in (None, why):
                wanted[why] = count if limit is None else min(count, left.setdefault(why, limit))
                left[why] = left.get(why, 0) - wanted[why]
        if any(wanted.values()):
            yield _Unit(number, shard, samples.path, verdicts.path, wanted)


def _export_unit(store: Store, pool: Pool, target: Store, unit: _Unit) -> list[tuple[Any, ...]]:
    """Writes the files of one shard's rejects; gives (reason, shard number, row, *the rest of the index)."""
    verdicts = read_columns(store, unit.verdicts, ["kept", "reason"])
    samples = read_columns(store, unit.samples, _COLUMNS).append_column("reason", verdicts["reason"])
    chosen = list(_chosen(samples.filter(pc.equal(verdicts["kept"], pa.scalar(False))), unit.wanted))
    rows = {sample["row"]: sample for sample in chosen}
    files: dict[int, list[str]] = {row: [] for row in rows}
    for item in read_shard(pool, unit.shard, rows=set(rows), members=True) if rows else ():
        if isinstance(item, RawSample) and item.row in rows:
            folder = rows[item.row]["reason"]
            for extension, data in _files_of(item):
                name = f"{unit.number:06d}-{item.row:09d}.{extension}"
                target.replace(f"{folder}/{name}", data)
                files[item.row].append(name)
    return [
        (
            sample["reason"],
            unit.number,
            row,
            " ".join(files[row]),
            _cell(unit.shard.name),
            _cell(sample["key"]),
            row,
            sample["offset"],
            sample["bytes"],
            sample["uid"].hex(),
        )
        for row, sample in rows.items()
    ]


def _chosen(rejected: pa.Table, wanted: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    left = dict(wanted)
    for sample in rejected.to_pylist():
        if left.get(sample["reason"], 0) > 0:
            left[sample["reason"]] -= 1
            yield sample


def _cell(name: str) -> str:
    """A name as a cell of the index."""
    return name if name.isprintable() and not name.startswith(('"', *"=+-@")) else json.dumps(name)


def _files_of(sample: RawSample) -> Iterator[tuple[str, bytes]]:
    """Extension of our own -> bytes, of all that could be read of a sample."""
    members: Mapping[str, bytes] = sample.members
    if not members:
        image = {sample.ext: sample.image} if sample.image else {}
        text = {} if sample.caption is None else {"txt": sample.caption.encode("utf-8", "surrogatepass")}
        metadata = {} if sample.metadata is None else {"json": json.dumps(sample.metadata, default=str).encode()}
        members = {**image, **text, **metadata}
    for number, (extension, data) in enumerate(members.items()):
        yield (extension if extension in _KNOWN_EXTENSIONS else f"{number}.bin"), data


def largest_shards(counts: Mapping[tuple[str, str], int], reason: str) -> Sequence[tuple[str, int]]:
    """The shards with samples rejected for a reason, those with the most first."""
    found = [(shard, count) for (why, shard), count in counts.items() if why == reason]
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))
