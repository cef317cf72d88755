"""The wiring of one pass: a Ray Data pipeline over the shards, with the finalisers beside it."""

import contextlib
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from pipeline import logs, metrics
from pipeline.payload import pack, unpack
from pipeline.placement import Encoders, cpu_work, place_encoders, tell_if_waiting
from pipeline.progress import StepProgress
from pipeline.readers.sample import ShardEnd
from pipeline.spread import spread
from pipeline.stream.chunks import decode_chunk, read_chunks
from pipeline.stream.encode import EncodeChunks, without_encoding, write_piece
from pipeline.stream.finalise import Made, ShardReceipts, finalise_shard
from pipeline.stream.stored import make_stored
from pipeline.stream.work import Pass, ShardWork

_READ_CPUS = 0.25
_DECODE_CPUS = 0.5
_WRITE_CPUS = 0.25
_MOST_READ_TASKS = 1024
_PIECES = "pieces"


@dataclass
class _Shard:
    """The chunks of a shard that have been written so far."""

    work: ShardWork
    rows: dict[int, dict[str, int]] = field(default_factory=dict)
    chunks: int | None = None
    end: ShardEnd | None = None

    def add(self, receipt: dict[str, Any]) -> dict[str, int]:
        """Takes note of a chunk; gives its counts."""
        counts, end = unpack(receipt["receipt"])
        self.rows[receipt["chunk"]] = counts
        if receipt["last"]:
            self.chunks, self.end = receipt["chunk"] + 1, end
        return dict(counts)

    @property
    def complete(self) -> ShardReceipts | None:
        if self.chunks is None or self.end is None or len(self.rows) < self.chunks:
            return None
        counts: dict[str, int] = {}
        for chunk in self.rows.values():
            for name, count in chunk.items():
                counts[name] = counts.get(name, 0) + count
        return ShardReceipts(self.work, self.chunks, counts, self.end)


def new_attempt() -> str:
    """The folder for the pieces of one attempt at a pass."""
    return f"{_PIECES}/{uuid.uuid4().hex}"


def run_pass(
    job: Pass, works: Sequence[ShardWork], *, workers: int, gpus: int | None = None, progress: StepProgress
) -> list[Made]:
    """Streams every shard through its pass and publishes the parts; removes its pieces, also when it fails.

    A driver that is killed leaves its pieces, and so may tasks that outlive a failed pass: nobody reads them, and the
    next pass over a local workspace, which has it for itself, sweeps them away.
    """
    if job.store.is_local:
        job.store.remove(_PIECES)
    try:
        return _run_pass(job, works, workers, gpus, progress)
    finally:
        job.store.remove(job.pieces)


def _run_pass(
    job: Pass, works: Sequence[ShardWork], workers: int, gpus: int | None, progress: StepProgress
) -> list[Made]:
    stored = [work for work in works if not job.pool.sources[work.shard.source].has_images]
    images = [work for work in works if job.pool.sources[work.shard.source].has_images]
    parts: list[Made] = []
    for made in spread(partial(_make_stored, job), stored, workers=workers):
        _count_rows(progress, made[0][2].counts if made else {})
        _count_shards(progress, made)
        parts += made
    return parts + (_stream(job, images, workers, gpus, progress) if images else [])


def _stream(
    job: Pass, works: Sequence[ShardWork], workers: int, gpus: int | None, progress: StepProgress
) -> list[Made]:
    """Reads, decodes and encodes images."""
    shards = {work.samples_id: _Shard(work) for work in works}
    finaliser = ray.remote(_finalise).options(num_cpus=_WRITE_CPUS, max_retries=3, **cpu_work(workers))
    finalising: list[Any] = []
    parts: list[Made] = []
    with contextlib.closing(_receipts(job, works, workers, gpus)) as arriving:
        for receipt in arriving:
            shard = shards[receipt["samples_id"]]
            _count_rows(progress, shard.add(receipt))
            if receipts := shard.complete:
                del shards[receipt["samples_id"]]
                finalising.append(finaliser.remote(job, receipts))
            finished, finalising = (
                ray.wait(finalising, num_returns=len(finalising), timeout=0) if finalising else ([], [])
            )
            for made in ray.get(finished):
                _count_shards(progress, made)
                parts += made
    for made in ray.get(finalising):
        _count_shards(progress, made)
        parts += made
    assert not shards, f"{len(shards)} shards ended without their last chunk"
    return parts


def _count_rows(progress: StepProgress, counts: Mapping[str, int]) -> None:
    rejected = sum(number for name, number in counts.items() if name.startswith("rejected:"))
    progress.advance(counts.get("in", 0), rejected=rejected)
    metrics.count_losses(progress.name, counts)


def _count_shards(progress: StepProgress, made: Sequence[Made]) -> None:
    """Counts a shard whose parts are there, and says what is wrong with it."""
    metrics.count(metrics.SHARDS, step=progress.name)
    for part in [part for _, _, part in made if part.notes.get("damage")]:
        damage = str(part.notes["damage"])
        metrics.count(metrics.DAMAGED_SHARDS, reason=damage)
        fields = {"step": progress.name, "shard": part.shard, "rows": part.rows}
        logs.warn(f"damaged shard: {part.shard} ({damage})", event="damaged", reason=damage, **fields)


def _receipts(
    job: Pass, works: Sequence[ShardWork], workers: int, gpus: int | None
) -> Generator[dict[str, Any], None, None]:
    from ray import data  # here, since not every worker that imports this module needs it, and it takes them a second

    items = [{"work": pack(work)} for work in works]
    shards = data.from_items(items, override_num_blocks=min(len(items), _MOST_READ_TASKS))
    # Every chunk is a block of its own, so it goes on as soon as it is read, and to any worker. Ray Data would gather
    # 128 MB of them first.
    shards.context.target_max_block_size = 1
    encoders = place_encoders(workers, gpus, sum(work.shard.size for work in works))
    here = cpu_work(workers)
    limits = data.ExecutionResources.for_limits(**_limits(workers, encoders))
    shards.context.execution_options.resource_limits = limits
    chunks = shards.flat_map(partial(_read, job), num_cpus=_READ_CPUS, **here)
    decoded = chunks.map(partial(decode_chunk, job), num_cpus=_DECODE_CPUS, **here)
    if any(work.needs for work in works):
        tell_if_waiting(encoders)
        encoded = decoded.map_batches(
            EncodeChunks,
            fn_args=(job,),
            fn_constructor_args=(encoders.on_gpus,),
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(min_size=encoders.now, max_size=encoders.most),
            num_cpus=encoders.cpus,
            num_gpus=int(encoders.on_gpus),
            **({} if encoders.on_gpus else here),
        )
    else:
        encoded = decoded.map(without_encoding, num_cpus=_DECODE_CPUS, **here)
    yield from encoded.map(partial(write_piece, job), num_cpus=_WRITE_CPUS, **here).iter_rows()


def _limits(workers: int, encoders: Encoders) -> dict[str, float]:
    """What a pass may use of a cluster that is larger, or shared. Encoders' CPUs beside GPUs come on top."""
    if not encoders.on_gpus:
        return {"cpu": workers}
    return {"cpu": workers + encoders.most * encoders.cpus, "gpu": encoders.most}


def _named(job: Pass, work: ShardWork) -> AbstractContextManager[None]:
    """Names the shard in all that a task logs meanwhile."""
    made = ["samples"] if work.samples_path is None else []
    step = ", ".join([*made, *(need.name for need, _ in work.needs)])
    return logs.bound(workspace=job.store.url, step=step, shard=work.shard.name)


def _read(job: Pass, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with _named(job, unpack(row["work"])):
        yield from read_chunks(job, row)


def _make_stored(job: Pass, work: ShardWork) -> list[Made]:
    with _named(job, work):
        made = make_stored(job, work)
    metrics.count(metrics.READ_BYTES, work.shard.size)
    return made


def _finalise(job: Pass, receipts: ShardReceipts) -> list[Made]:
    with _named(job, receipts.work):
        made = finalise_shard(job, receipts)
    metrics.count(metrics.READ_BYTES, receipts.work.shard.size)
    return made
