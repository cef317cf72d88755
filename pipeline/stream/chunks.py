"""The CPU side of a pass: shards into chunks of raw samples, chunks into rows, pixels and tokens.

A chunk is a run of consecutive rows of one shard and travels as one Ray Data row, so no scheduler can split it: its
batches, and so its embeddings, are the same whoever computes them.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.encoders.base import Preprocessor
from operators.errors import InputError
from operators.images import Header, UnusableImage, decode, image_hash
from operators.rejects import Reason
from operators.uids import derive_uid
from pipeline.artifact import read_columns
from pipeline.columns import booleans
from pipeline.models import build_preprocessor
from pipeline.payload import pack, unpack
from pipeline.readers import read_shard
from pipeline.readers.sample import RawSample, ShardEnd
from pipeline.stream.work import SAMPLES_SCHEMA, Need, Pass, ShardWork

_CHUNK_BYTES = 64 * 2**20
_CHUNK_SPAN = 8
"""Rows that a chunk may cover for each sample it may hold: after a filter few rows are wanted, and all take room."""


def read_chunks(job: Pass, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Reads one shard and yields its chunks: at most `pool.chunk_samples` samples or 64 MiB of images each.

    Yields:
        rows `work, chunk, last, payload`; the payload holds (start, stop, samples, end): the chunk covers the shard's
        rows [start, stop), `samples` those of them that are wanted, `end` the `ShardEnd` in the last chunk.

    Raises:
        InputError: the shard no longer holds every row that is wanted.
    """
    work: ShardWork = unpack(row["work"])
    wanted = None if work.samples_path is None else rows_to_embed(job, work)
    waiting: list[RawSample] = []
    span = _CHUNK_SPAN * job.pool.chunk_samples
    size = start = number = found = 0
    for item in read_shard(job.pool, work.shard, rows=wanted):
        if isinstance(item, ShardEnd):
            if wanted is not None and found != len(wanted):
                raise rows_lost(work, len(wanted), found)
            # A reader stops after the last row that is wanted; the part has a row for every sample all the same.
            until = item.rows if work.rows is None else work.rows
        else:
            until = item.row + 1
            if len(waiting) == job.pool.chunk_samples or size > _CHUNK_BYTES:
                stop = waiting[-1].row + 1
                yield _chunk(row, number, (start, stop, waiting, None))
                start, number, waiting, size = stop, number + 1, [], 0
        while until - start > span:
            yield _chunk(row, number, (start, start + span, waiting, None))
            start, number, waiting, size = start + span, number + 1, [], 0
        if isinstance(item, ShardEnd):
            yield _chunk(row, number, (start, until, waiting, item))
        else:
            waiting.append(item)
            size += len(item.image)
            found += 1


def rows_lost(work: ShardWork, wanted: int, got: int) -> InputError:
    """The error of a shard that no longer holds what its samples say."""
    return InputError(
        f"shard {work.shard.name} must still hold the {wanted} rows that were read from it, got {got}: "
        "run again once it is back"
    )


def decode_chunk(job: Pass, row: dict[str, Any]) -> dict[str, Any]:
    """Decodes every image of a chunk once, for all models that are needed.

    Returns:
        the row with a payload of (start, stop, samples table or None, inputs by need, rows embedded by need, end).
        Inputs are uint8 pixels (n, H, W, 3) or int tokens (n, L).
    """
    work: ShardWork = unpack(row["work"])
    start, stop, samples, end = unpack(row["payload"])
    needs = [need for need, _ in work.needs]
    inputs: dict[str, list[NDArray[Any]]] = {need.name: [] for need in needs}
    rows: dict[str, list[int]] = {need.name: [] for need in needs}
    looked_at = []
    for sample in samples:
        header, pixels = _look_at(job, sample, needs)
        looked_at.append((sample, header))
        if sample.reason is not None:
            continue
        for name, array in pixels.items():
            inputs[name].append(array)
            rows[name].append(sample.row)
        for need in needs:
            if need.modality == "text" and sample.caption is not None:
                inputs[need.name].append(_preprocessor(job, need.model).text([sample.caption])[0])
                rows[need.name].append(sample.row)
    table, counts = samples_table(job, work, looked_at)
    arrays = {name: np.stack(values) for name, values in inputs.items() if values}
    row["payload"] = pack((start, stop, table, arrays, rows, counts, end))
    return row


def _look_at(job: Pass, sample: RawSample, needs: list[Need]) -> tuple[Header | None, dict[str, Any]]:
    """Decodes one image once for each decoder setting: gives its header and each model's pixels, or rejects it."""
    if sample.reason is not None or not sample.image:
        return None, {}
    models = [need for need in needs if need.modality == "image"]
    drafts = {_preprocessor(job, need.model).draft for need in models} or {None}
    try:
        decoded = {draft: decode(sample.image, max_pixels=job.pool.max_pixels, draft=draft) for draft in drafts}
    except UnusableImage as unusable:
        sample.reason = unusable.reason
        return unusable.header, {}
    pixels = {}
    for need in models:
        preprocessor = _preprocessor(job, need.model)
        pixels[need.name] = preprocessor.image(decoded[preprocessor.draft].image)
    return next(iter(decoded.values())).header, pixels


def samples_table(
    job: Pass, work: ShardWork, samples: Sequence[tuple[RawSample, Header | None]]
) -> tuple[pa.Table | None, dict[str, int]]:
    """The rows of `samples` for these, None where the pass does not make them, and their counts.

    Args:
        job: the pass.
        work: the shard's.
        samples: with their images' headers, as far as there are any.
    """
    counts = _counts([sample for sample, _ in samples])
    if work.samples_path is not None:
        return None, counts
    has_images = job.pool.sources[work.shard.source].has_images
    records = [
        _record(work.shard.name, sample, header)
        if has_images
        else _record(work.shard.name, sample, None) | _original_size(sample.metadata)
        for sample, header in samples
    ]
    return pa.Table.from_pylist(records, schema=SAMPLES_SCHEMA), counts


def _original_size(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The size that DataComp's metadata gives of an image that is not there: both sides or none."""
    sizes = {side: (metadata or {}).get(f"original_{side}") for side in ("width", "height")}
    known = all(isinstance(size, int) and 0 < size < 2**31 for size in sizes.values())
    return sizes if known else {}


def _record(shard: str, sample: RawSample, header: Header | None) -> dict[str, Any]:
    return {
        "uid": sample.uid or derive_uid(shard, sample.key),
        "shard": shard,
        "key": sample.key,
        "row": sample.row,
        "offset": sample.offset,
        "bytes": len(sample.image),
        "ext": sample.ext or None,
        "width": header.width if header else None,
        "height": header.height if header else None,
        "caption": sample.caption,
        "image_hash": image_hash(sample.image) if sample.image else None,
        "reason": sample.reason,
        "metadata": None if sample.metadata is None else _canonical(sample.metadata),
    }


def _canonical(metadata: Any) -> str:
    return json.dumps(metadata, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)


def _counts(samples: list[RawSample]) -> dict[str, int]:
    counts = {"in": len(samples), "kept": sum(sample.reason is None for sample in samples)}
    for reason in Reason:
        if rejected := sum(sample.reason == reason for sample in samples):
            counts[f"rejected:{reason}"] = rejected
    counts["uid_supplied"] = sum(sample.uid is not None for sample in samples)
    counts["uid_invalid"] = sum(sample.uid_invalid for sample in samples)
    return counts


def rows_to_embed(job: Pass, work: ShardWork) -> set[int]:
    """The rows of a shard whose samples are there that are to be embedded."""
    if work.entering is not None:
        kept_N = booleans(read_columns(job.store, work.entering, ["kept"])["kept"])
    else:
        assert work.samples_path is not None
        kept_N = read_columns(job.store, work.samples_path, ["reason"])["reason"].is_null().to_numpy()
    return set(np.flatnonzero(kept_N).tolist())


def _chunk(
    row: dict[str, Any], number: int, payload: tuple[int, int, list[RawSample], ShardEnd | None]
) -> dict[str, Any]:
    last = payload[3] is not None
    return {"work": row["work"], "chunk": number, "last": last, "payload": pack(payload)}


def _preprocessor(job: Pass, model: str) -> Preprocessor:
    return _cached_preprocessor(job.models[model])


@functools.cache
def _cached_preprocessor(settings: Any) -> Preprocessor:
    return build_preprocessor(settings)
