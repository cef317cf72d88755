"""Looking at one part, or one file, of an artifact: its bytes, its rows, and what its record says of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import DamagedError, InputError
from pipeline.artifact import mask_digest, read_part
from pipeline.columns import booleans
from pipeline.filters.files import parse_filter
from pipeline.integrity import (
    Checksum,
    checksum,
    damaged,
    read_arrays,
    read_parquet,
    read_sealed,
    reading,
    what_is_wrong,
)
from pipeline.parts import Part
from pipeline.storage import Store
from pipeline.stream.work import SAMPLES_SCHEMA


@dataclass(frozen=True, slots=True)
class Damage:
    """One file that is not what it must be."""

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path} must be {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Tally:
    """What was looked at: parts or other files, their rows and bytes, and what is wrong with them."""

    parts: int = 0
    rows: int = 0
    bytes: int = 0
    damage: tuple[Damage, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.parts + other.parts,
            self.rows + other.rows,
            self.bytes + other.bytes,
            self.damage + other.damage,
        )


def check_part(store: Store, home: str, listed: Part | None) -> Tally:
    """Reads a part whole; the worker holds its file.

    Args:
        store: the workspace.
        home: the part's folder.
        listed: what a manifest says of it; None where none lists it.
    """
    name = f"{home}/part.json"
    damage: list[Damage] = []
    try:
        part = read_part(store, home)
    except FileNotFoundError:
        if listed is None:
            return Tally()  # nothing was committed
        part = listed
        damage.append(Damage(name, "there, since a manifest lists the part", "no such file"))
    except DamagedError as error:
        return Tally(1, damage=(Damage(name, "what was written", what_is_wrong(error)),))
    if listed and (differing := _differing(asdict(listed), asdict(part))):
        damage.append(Damage(name, f"as its manifest says: {_show(differing, 0)}", _show(differing, 1)))
        part = listed
    damage += _check_rows(store, part)
    return Tally(1, part.rows, part.size, tuple(damage))


def check_file(store: Store, path: str, known: Checksum | None) -> Tally:
    """Reads a file whole.

    Args:
        store: the workspace.
        path: of the file.
        known: what it must be; None where nobody has written that down, and only what the file itself tells counts.
    """
    try:
        with reading(store, path):
            got = checksum(store, path)
        if known is None:
            _parse(store, path)
    except DamagedError as error:
        expected = f"{known.size} bytes of SHA-256 {known.sha256}" if known else "what was written"
        return Tally(1, damage=(Damage(path, expected, what_is_wrong(error)),))
    return Tally(1, 0, got.size, tuple(_compare(path, known, got)) if known else ())


def _parse(store: Store, path: str) -> None:
    """Raises DamagedError where a file of a format that checks itself does not pass."""
    if path.endswith(".npz"):
        read_arrays(store, path)
    elif path.endswith(".json"):
        read_sealed(store, path)
    elif path.endswith(".safetensors"):
        try:
            parse_filter(store.read(path), path)
        except InputError as error:
            raise damaged(store, path, error) from error
    elif path.endswith(".parquet"):
        with reading(store, path), store.open(path) as file:
            read_parquet(file, path)


def _compare(path: str, known: Checksum, got: Checksum) -> list[Damage]:
    if got.size != known.size:
        return [Damage(path, f"{known.size} bytes long", f"{got.size}")]
    if got.sha256 != known.sha256:
        return [Damage(path, f"of SHA-256 {known.sha256}", got.sha256)]
    return []


def _check_rows(store: Store, part: Part) -> list[Damage]:
    """What is wrong with a part's file, or else with what its record says of the rows in it."""
    try:
        with reading(store, part.path):
            data = store.read(part.path)
    except DamagedError as error:
        return [Damage(part.path, f"{part.size} bytes long", what_is_wrong(error))]
    got = Checksum(len(data), hashlib.sha256(data).hexdigest())
    if wrong := _compare(part.path, Checksum(part.size, part.sha256), got):
        return wrong
    try:
        with reading(store, part.path):
            return _check_counts(part, data)
    except DamagedError as error:
        return [Damage(part.path, "a Parquet file of ours", what_is_wrong(error))]


def _check_counts(part: Part, data: bytes) -> list[Damage]:
    table = read_parquet(pa.BufferReader(data), part.path)
    if table.num_rows != part.rows:
        return [Damage(part.path, f"of the {part.rows} rows of its record", f"{table.num_rows}")]
    counts = {name: count for name, count in part.counts.items() if _is_verdict(name)}
    damage = []
    total = sum(counts.values()) - counts.get("in", 0)
    if counts and counts.get("in") != total:
        expected = "recorded with rows in = kept + dropped + rejected"
        damage.append(Damage(part.path, expected, f"{counts.get('in')} = {total}"))
    found = _count(table)
    if found is not None and (differing := _differing(found, counts)):
        damage.append(Damage(part.path, f"recorded with its counts, {_show(differing, 0)}", _show(differing, 1)))
    if "kept" in table.column_names and mask_digest(booleans(table["kept"])) != part.mask:
        damage.append(Damage(part.path, "recorded with the digest of its kept rows", f"{part.mask or 'none'}"))
    return damage


def _count(table: pa.Table) -> dict[str, int] | None:
    """The counts that the rows themselves give; None where they cannot tell."""
    names = table.column_names
    if {"kept", "reason"} <= set(names):
        judged = table["kept"].drop_null()
        return {"in": len(judged), "kept": pc.sum(judged).as_py() or 0, **_reasons(table, "dropped")}
    if names == SAMPLES_SCHEMA.names:
        return {"in": table.num_rows, "kept": table["reason"].null_count, **_reasons(table, "rejected")}
    if names == ["embedding"]:
        embedded = table.num_rows - table["embedding"].null_count
        return {"in": embedded, "kept": embedded}
    return None


def _reasons(table: pa.Table, prefix: str) -> dict[str, int]:
    counted = table["reason"].drop_null().value_counts().to_pylist()
    return {f"{prefix}:{item['values']}": item["counts"] for item in counted}


def _is_verdict(name: str) -> bool:
    return name in ("in", "kept") or name.startswith(("dropped:", "rejected:"))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of which two records say different things. The name of a shard is what a pool calls it."""
    names = [name for name in {**one, **other} if name != "shard"]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _show(differing: Mapping[str, Sequence[Any]], side: int) -> str:
    return json.dumps({name: values[side] for name, values in differing.items()}, sort_keys=True, default=str)
