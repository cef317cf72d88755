"""A pass over pools of embeddings: one task a shard reads, judges and writes, since nothing is decoded or encoded.

A sample stands or falls with the embeddings of its image, whatever models are configured, as others do with the image
itself: without a direction (zero, or with a NaN or an infinity) they are `bad_embedding`. A caption's embedding without
a direction counts as none. Vectors of another width than the pool's first readable shard has are left out: the steps
that need them drop their samples as `no_embedding`.

Legend: N rows of a block, D columns.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.embeddings import to_stored
from operators.encoders.settings import StoredSettings
from operators.errors import InputError
from operators.rejects import Reason
from pipeline.columns import embedding_field, fixed_binary
from pipeline.pool import Pool, Shard, suggest
from pipeline.readers import DAMAGE, read_shard
from pipeline.readers.sample import RawSample, ShardEnd
from pipeline.readers.stored import array_widths, is_image_array
from pipeline.stream.chunks import rows_lost, rows_to_embed, samples_table
from pipeline.stream.encode import piece_table, store_piece
from pipeline.stream.finalise import Made, ShardReceipts, finalise_shard
from pipeline.stream.work import Need, Pass, ShardWork

BLOCK_ROWS = 8192


def stored_width(pool: Pool, shards: Sequence[Shard], array: str) -> int:
    """The columns of an array, by the first shard that can be read; 0 where none can.

    Raises:
        InputError: that shard has no such array, or one of something else than numbers.
    """
    for shard in shards:
        try:
            widths = array_widths(pool.sources[shard.source], shard)
        except DAMAGE:
            continue
        if array not in widths:
            known = ", ".join(widths) or "none"
            raise InputError(f"must be an array of the pool ({known}), got {array!r}{suggest(array, widths)}")
        return widths[array]
    return 0


def make_stored(job: Pass, work: ShardWork) -> list[Made]:
    """Makes what one shard lacks: its samples, its embeddings, or both.

    Raises:
        InputError: the shard no longer holds every row that is wanted.
    """
    wanted = None if work.samples_path is None else rows_to_embed(job, work)
    arrays = {need.name: _array(job, need) for need, _ in work.needs}
    counts: Counter[str] = Counter()
    waiting: list[RawSample] = []
    chunks = start = 0
    for found, item in enumerate(read_shard(job.pool, work.shard, rows=wanted, arrays=set(arrays.values()))):
        if isinstance(item, ShardEnd):
            if wanted is not None and found != len(wanted):
                raise rows_lost(work, len(wanted), found)
            until = item.rows if work.rows is None else work.rows
        else:
            until = item.row + 1
        while until - start > BLOCK_ROWS:
            counts.update(_write_block(job, work, arrays, chunks, (start, start + BLOCK_ROWS, waiting)))
            chunks, start, waiting = chunks + 1, start + BLOCK_ROWS, []
        if isinstance(item, ShardEnd):
            counts.update(_write_block(job, work, arrays, chunks, (start, until, waiting)))
            return finalise_shard(job, ShardReceipts(work, chunks + 1, dict(counts), item))
        waiting.append(item)
    raise AssertionError("a reader ends with a ShardEnd")


def _array(job: Pass, need: Need) -> str:
    settings = job.models[need.model]
    assert isinstance(settings, StoredSettings), need.model
    array = settings.array(need.modality)
    assert array is not None, need.name
    return array


def _write_block(
    job: Pass, work: ShardWork, arrays: dict[str, str], chunk: int, block: tuple[int, int, list[RawSample]]
) -> dict[str, int]:
    """Writes one piece, for the shard's rows [start, stop); gives its counts."""
    start, stop, samples = block
    vectors = {name: _units(samples, name) for name in (samples[0].vectors if samples else ())}
    for name, (_, sound_N) in vectors.items():
        if is_image_array(name):
            for i in np.flatnonzero(~sound_N).tolist():
                samples[i].reason = samples[i].reason or Reason.BAD_EMBEDDING
    sound_N = np.array([sample.reason is None for sample in samples], dtype=bool)
    position_N = np.array([sample.row for sample in samples], dtype=np.int64) - start
    columns: dict[str, tuple[pa.Field, pa.Array]] = {}
    for need, _ in work.needs:
        assert need.dim is not None
        unit_ND, valid_N = vectors.get(arrays[need.name], (np.empty((0, 0), np.float16), np.zeros(0, bool)))
        filled_N = np.zeros(stop - start, dtype=bool)
        values_ND = np.zeros((stop - start, need.dim), dtype=np.float16)
        if unit_ND.shape[1] == need.dim:
            given_N = sound_N & valid_N
            filled_N[position_N[given_N]] = True
            values_ND[position_N[given_N]] = unit_ND[given_N]
        columns[need.name] = embedding_field(need.name, need.dim), fixed_binary(values_ND, filled_N)
    table, counts = samples_table(job, work, [(sample, None) for sample in samples])
    store_piece(job, work, chunk, piece_table(table, stop - start, columns))
    return counts


def _units(samples: Sequence[RawSample], name: str) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    return to_stored(np.stack([sample.vectors[name] for sample in samples]))
