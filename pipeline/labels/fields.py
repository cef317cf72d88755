"""What a task wants to know of each sample besides its image: its class, its group.

Such a field is a sample's metadata: a column of a table, a key of its JSON member, the label of a folder or of an IDX
file. In webdataset shards `cls` and `npy` are the whole number in the member `.cls` and the first number in the array
`.npy`, of a sample that has such a member. Members take a pass over the shards; an evaluation keeps what came of it:

    fields/<hash>/<part id>/...     one row for each sample: a column of JSON for each field, null where there is none
"""

import io
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import InputError
from pipeline.artifact import find_part, publish_part, read_columns
from pipeline.parts import Part
from pipeline.pool import Pool, Shard
from pipeline.readers import RawSample, read_shard
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.storage import Store, digest

FIELDS_VERSION = 2

MEMBER_FIELDS = ("cls", "npy")


@dataclass(frozen=True)
class _Work:
    """One shard, its samples, and where its fields go."""

    shard: Shard
    samples: Part
    id: str


def read_fields(run: Run, fields: Sequence[str]) -> tuple[pa.Table, str]:
    """A column for each field, one row for each sample of the set, and a digest that names them all.

    Args:
        run: over the evaluation set, with its samples.
        fields: names, each once.

    Returns:
        a table of JSON texts, in the order of the samples, null where a sample has no such field.
    """
    folder = f"fields/{digest(FIELDS_VERSION, list(fields))}"
    works = [
        _Work(shard, part, digest(part.id, part.sha256))
        for shard, part in zip(run.shards, run.samples.parts, strict=True)
    ]
    made = {work.id: part for work in works if (part := find_part(run.store, f"{folder}/{work.id}"))}
    missing = [work for work in works if work.id not in made]
    publish = partial(_publish, run.store, run.pool, folder, tuple(fields))
    for part in spread(publish, missing, workers=run.workers):
        made[part.id] = part
    parts = [made[work.id] for work in works]
    tables = [read_columns(run.store, part.path) for part in parts]
    return pa.concat_tables(tables), digest([part.sha256 for part in parts])


def _publish(store: Store, pool: Pool, folder: str, fields: Sequence[str], work: _Work) -> Part:
    columns = _metadata(store, work.samples, fields)
    for field, values in read_members(pool, work.shard, fields, range(work.samples.rows)).items():
        for row, value in values.items():
            columns[field][row] = _json(value)
    schema = pa.schema([(field, pa.string()) for field in fields])
    draft = Part(work.shard.name, work.id, "", 0, 0, "")
    return publish_part(store, folder, draft, [pa.table({name: columns[name] for name in fields}, schema)], schema)


def _metadata(store: Store, samples: Part, fields: Sequence[str]) -> dict[str, list[str | None]]:
    texts = read_columns(store, samples.path, ["metadata"])["metadata"].to_pylist() if fields else []
    records = [json.loads(text) if text else {} for text in texts]
    return {field: [_json(record.get(field)) for record in records] for field in fields}


def read_members(
    pool: Pool, shard: Shard, fields: Sequence[str], rows: Collection[int]
) -> dict[str, dict[int, int | str]]:
    """What the members of a shard say of some of its rows: by field and row, nothing where there is no such member.

    Args:
        pool: limits and sources.
        shard: of the pool.
        fields: of which `cls` and `npy` of a webdataset are members; of others there is nothing.
        rows: of the samples that are asked for.

    Raises:
        InputError: a `.npy` is no array of numbers.
    """
    is_tar = pool.sources[shard.source].format == "webdataset"
    found: dict[str, dict[int, int | str]] = {field: {} for field in fields if is_tar and field in MEMBER_FIELDS}
    for sample in read_shard(pool, shard, rows=rows, members=True) if found else ():
        if isinstance(sample, RawSample) and sample.reason is None:
            for field in found.keys() & sample.members.keys():
                found[field][sample.row] = parse_member(sample, field, shard)
    return found


def parse_member(sample: RawSample, field: str, shard: Shard) -> int | str:
    """What a member of a sample says. Raises InputError where a `.npy` is no array of numbers."""
    data = sample.members[field]
    if field == "cls":
        text = data.decode("utf-8", "replace").strip()
        return int(text) if text.isdecimal() else text
    try:
        return int(np.load(io.BytesIO(data), allow_pickle=False).ravel()[0])
    except (ValueError, IndexError, EOFError, OverflowError) as error:
        raise InputError(f"{sample.key}.npy of {shard.name} must be an array of numbers, got {error}") from error


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)
