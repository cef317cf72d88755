"""The publishing side of a pass: the pieces of one shard, joined in chunk order, become its parts."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from operators.rejects import Damage
from pipeline.artifact import find_part, publish_part
from pipeline.columns import present
from pipeline.parts import Part
from pipeline.readers.sample import ShardEnd
from pipeline.storage import digest
from pipeline.stream.work import SAMPLES_SCHEMA, Need, Pass, ShardWork


@dataclass(frozen=True)
class ShardReceipts:
    """What the driver knows of a shard whose chunks have all been written."""

    work: ShardWork
    chunks: int
    counts: dict[str, int]
    end: ShardEnd

    def part_id(self, asked: str) -> str:
        """The address of what was made for the one that was asked for: another one where reading failed.

        A shard that is missing or unreadable may be put right without a change of its size or time (permissions, a
        mount), so its own address stays free, and every run tries it again. A cut is a fact of its bytes.
        """
        return damaged_id(asked, self.end.damage, self.end.rows)


def damaged_id(asked: str, damage: str | None, rows: int) -> str:
    """The address of a part where another was asked for: see `ShardReceipts.part_id`."""
    return asked if damage in (None, Damage.TRUNCATED) else digest(asked, damage, rows)


Made = tuple[str, str, Part]
"""(artifact folder, the part id that was asked for, the part)."""


def finalise_shard(job: Pass, receipts: ShardReceipts) -> list[Made]:
    """Publishes the parts of one shard and removes its pieces. A retry finds what a worker had done before it died."""
    work = receipts.work
    asked = [] if work.samples_path else [(job.samples_folder, work.samples_id)]
    asked += [(need.folder, part_id) for need, part_id in work.needs]
    made = [
        (folder, part_id, part)
        for folder, part_id in asked
        if (part := find_part(job.store, f"{folder}/{receipts.part_id(part_id)}"))
    ]
    if len(made) < len(asked):
        made = [_publish_samples(job, receipts)] if work.samples_path is None else []
        made += [_publish_embeddings(job, receipts, need, part_id) for need, part_id in work.needs]
    job.store.remove(f"{job.pieces}/{work.samples_id}")
    return made


def _publish_samples(job: Pass, receipts: ShardReceipts) -> Made:
    work, end = receipts.work, receipts.end
    notes = {"damage": end.damage, "message": end.message} if end.damage else {}
    draft = Part(work.shard.name, receipts.part_id(work.samples_id), "", 0, 0, "", receipts.counts, "", notes)
    tables = (piece.select(SAMPLES_SCHEMA.names) for piece in _pieces(job, receipts))
    part = publish_part(job.store, job.samples_folder, draft, tables, SAMPLES_SCHEMA)
    assert part.rows == part.counts["in"] == end.rows, f"{work.shard.name}: {part} {end}"
    return job.samples_folder, work.samples_id, part


def _publish_embeddings(job: Pass, receipts: ShardReceipts, need: Need, part_id: str) -> Made:
    field = next(_pieces(job, receipts)).schema.field(need.name).with_name("embedding")
    embedded = sum(int(present(piece[need.name]).sum()) for piece in _pieces(job, receipts))
    counts = {"in": embedded, "kept": embedded}
    draft = Part(receipts.work.shard.name, receipts.part_id(part_id), "", 0, 0, "", counts)
    tables = (pa.table([piece[need.name]], schema=pa.schema([field])) for piece in _pieces(job, receipts))
    return need.folder, part_id, publish_part(job.store, need.folder, draft, tables, pa.schema([field]))


def _pieces(job: Pass, receipts: ShardReceipts) -> Iterator[pa.Table]:
    for chunk in range(receipts.chunks):
        with pa.ipc.open_stream(job.store.read(job.piece(receipts.work, chunk))) as reader:
            yield reader.read_all()
