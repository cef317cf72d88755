"""The model side of a pass: an actor that owns the encoders, and the pieces that it leaves behind."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from operators.embeddings import to_unit_float16
from operators.encoders.base import Device, Encoder
from pipeline import metrics
from pipeline.columns import embedding_field, fixed_binary
from pipeline.models import build_encoder
from pipeline.payload import pack, unpack
from pipeline.stream.work import Pass, ShardWork

THREADS = 1
"""Threads of one CPU encoder. Parallelism comes from several actors: float32 sums change with the thread count."""


class EncodeChunks:
    """Turns the pixels and tokens of a chunk into columns of unit float16 rows.

    One instance lives in each actor of the pool and loads each model once, when the first chunk asks for it.

    Args:
        on_gpu: whether a GPU is set apart for it. If not, it takes none, also where it could: Ray hides none.
    """

    def __init__(self, on_gpu: bool = False) -> None:
        self.encoders: dict[str, Encoder] = {}
        self._device: Device = "auto" if on_gpu else "cpu"
        self._idle_since = time.perf_counter()

    def __call__(self, batch: pa.Table, job: Pass) -> pa.Table:
        """Encodes a batch of one chunk. The payload becomes (table, counts, end): see `piece_table`."""
        started = time.perf_counter()
        metrics.count(metrics.ENCODER_WAIT, started - self._idle_since)
        encoded = self._encode(batch, job)
        self._idle_since = time.perf_counter()
        metrics.count(metrics.ENCODER_BUSY, self._idle_since - started)
        return encoded

    def _encode(self, batch: pa.Table, job: Pass) -> pa.Table:
        (row,) = batch.to_pylist()
        work: ShardWork = unpack(row["work"])
        start, stop, table, arrays, rows, counts, end = unpack(row["payload"])
        columns: dict[str, tuple[pa.Field, pa.Array]] = {}
        for need, _ in work.needs:
            encoder = self._encoder(job, need.model)
            filled_N = np.zeros(stop - start, dtype=bool)
            values_ND = np.zeros((stop - start, encoder.dim), dtype=np.float16)
            if rows[need.name]:
                encode = encoder.encode_images if need.modality == "image" else encoder.encode_texts
                unit_ND, sound_N = to_unit_float16(encode(arrays[need.name]))
                positions = np.asarray(rows[need.name]) - start
                filled_N[positions] = sound_N
                values_ND[positions] = unit_ND
            columns[need.name] = (embedding_field(need.name, encoder.dim), fixed_binary(values_ND, filled_N))
        row["payload"] = pack((piece_table(table, stop - start, columns), counts, end))
        return pa.Table.from_pylist([row], schema=batch.schema)

    def _encoder(self, job: Pass, model: str) -> Encoder:
        if model not in self.encoders:
            self.encoders[model] = build_encoder(job.models[model], device=self._device, threads=THREADS)
        return self.encoders[model]


def without_encoding(row: dict[str, Any]) -> dict[str, Any]:
    """What takes the place of the actor where no model is needed."""
    start, stop, table, _, _, counts, end = unpack(row["payload"])
    row["payload"] = pack((piece_table(table, stop - start, {}), counts, end))
    return row


def piece_table(samples: pa.Table | None, rows: int, columns: dict[str, tuple[pa.Field, pa.Array]]) -> pa.Table:
    """One table of a chunk: the samples' columns, where the pass makes them, and a column for each need."""
    fields: list[pa.Field] = list(samples.schema) if samples is not None else []
    arrays: list[Any] = list(samples.columns) if samples is not None else []
    for field, array in columns.values():
        assert len(array) == rows
        fields.append(field)
        arrays.append(array)
    return pa.table(arrays, schema=pa.schema(fields))


def store_piece(job: Pass, work: ShardWork, chunk: int, table: pa.Table) -> None:
    """Writes a chunk's table where the finaliser will find it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    job.store.replace(job.piece(work, chunk), sink.getvalue().to_pybytes())


def write_piece(job: Pass, row: dict[str, Any]) -> dict[str, Any]:
    """Writes a chunk's table where the finaliser will find it, and gives the driver a receipt without data."""
    work: ShardWork = unpack(row["work"])
    table, counts, end = unpack(row["payload"])
    store_piece(job, work, row["chunk"], table)
    return {
        "samples_id": work.samples_id,
        "chunk": row["chunk"],
        "last": row["last"],
        "rows": counts["in"],
        "receipt": pack((counts, end)),
    }
