"""The publishing side of a pass: the pieces of one shard, joined in chunk order, become its parts."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.artifact import Part, publish_part
from pipeline.columns import present
from pipeline.readers.sample import ShardEnd
from pipeline.stream.work import SAMPLES_SCHEMA, Pass, ShardWork


@dataclass(frozen=True)
class ShardReceipts:
    """What the driver knows of a shard whose chunks have all been written."""

    work: ShardWork
    chunks: int
    counts: dict[str, int]
    end: ShardEnd


def finalise_shard(job: Pass, receipts: ShardReceipts) -> list[tuple[str, Part]]:
    """Publishes the parts of one shard and removes its pieces.

    Returns:
        (artifact folder, part) of each.
    """
    work = receipts.work
    parts = []
    schema = next(_pieces(job, receipts)).schema
    if work.samples_path is None:
        notes = {"damage": receipts.end.damage, "message": receipts.end.message} if receipts.end.damage else {}
        draft = Part(work.shard.name, work.samples_id, "", 0, 0, "", receipts.counts, "", notes)
        tables = (piece.select(SAMPLES_SCHEMA.names) for piece in _pieces(job, receipts))
        part = publish_part(job.store, job.samples_folder, draft, tables, SAMPLES_SCHEMA)
        assert part.rows == part.counts["in"] == receipts.end.rows, f"{work.shard.name}: {part} {receipts.end}"
        parts.append((job.samples_folder, part))
    for need, part_id in work.needs:
        field = schema.field(need.name).with_name("embedding")
        embedded = sum(int(present(piece[need.name]).sum()) for piece in _pieces(job, receipts))
        draft = Part(work.shard.name, part_id, "", 0, 0, "", {"in": embedded, "kept": embedded})
        tables = (pa.table([piece[need.name]], schema=pa.schema([field])) for piece in _pieces(job, receipts))
        parts.append((need.folder, publish_part(job.store, need.folder, draft, tables, pa.schema([field]))))
    job.store.remove(f"{job.pieces}/{work.samples_id}")
    return parts


def _pieces(job: Pass, receipts: ShardReceipts) -> Iterator[pa.Table]:
    for chunk in range(receipts.chunks):
        with pa.ipc.open_stream(job.store.read(job.piece(receipts.work, chunk))) as reader:
            yield reader.read_all()
