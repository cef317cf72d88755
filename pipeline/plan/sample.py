"""A few shards of a pool, read by the real reader and decoded by the real stage: what all the others may be like.

Of a large shard only the beginning is read, and of what is read a few hundred images are decoded at most. How many
samples the pool has is extrapolated by the bytes of its shards, or by their number where the sampled shards agree
better on how many a shard has than on how many a byte: pools are often written with so many samples a shard.

Legend: n samples that were prepared for a model.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import ConfigError, InputError
from pipeline.payload import pack, unpack
from pipeline.pool import Pool, Shard
from pipeline.readers import DAMAGE, read_shard
from pipeline.readers.parquet import count_rows
from pipeline.readers.sample import RawSample, ShardEnd
from pipeline.storage import Store
from pipeline.stream.chunks import decode_chunk, samples_table
from pipeline.stream.work import Need, Pass, ShardWork

READ_BYTES = 64 * 2**20
"""Of one shard."""

READ_ROWS = 8192
"""Of all shards together: what one row group holds."""

DECODED = 96
"""Of one shard."""


@dataclass(frozen=True)
class PoolFacts:
    """A pool as far as a plan must know it: measured on a sample, or described for a pool that is not there.

    Attributes:
        shards, bytes: of the pool.
        samples: as extrapolated from those read.
        image_bytes: of an encoded image, on average.
        max_pixels: of the largest image seen.
        caption_chars: of a caption, on average over all samples.
        reject_fraction: of the samples that were decoded.
        supplies_uids: whether samples bring uids, which must then be compared.
        read_seconds: CPU seconds to read and parse one sample.
        decode_seconds: to decode its image, hash it and note down what is known of it.
        sampled_shards, sampled_samples, decoded: what all this was measured on.
    """

    shards: int
    bytes: int
    samples: int
    image_bytes: float
    max_pixels: int
    caption_chars: float
    reject_fraction: float
    supplies_uids: bool
    read_seconds: float
    decode_seconds: float
    sampled_shards: int
    sampled_samples: int
    decoded: int

    @property
    def rows_per_shard(self) -> float:
        """Samples of a shard, on average."""
        return self.samples / max(1, self.shards)


@dataclass(frozen=True)
class Sampled:
    """A sample of a pool.

    Attributes:
        facts: of the pool.
        table: rows of the `samples` artifact, those of all sampled shards in one.
        inputs: by need: what the model would be given, or the vectors that the pool brings (n, ...).
        prepare_seconds: by need: CPU seconds for each sample, on top of decoding.
    """

    facts: PoolFacts
    table: pa.Table
    inputs: Mapping[str, NDArray[Any]]
    prepare_seconds: Mapping[str, float]

    def scaled(self, samples: int, shards: int) -> "Sampled":
        """The same for a pool of so many such samples."""
        total = round(self.facts.bytes * samples / max(1, self.facts.samples))
        return replace(self, facts=replace(self.facts, shards=shards, bytes=total, samples=samples))


@dataclass(frozen=True)
class _Look:
    """What was read of a shard, and how many rows it has if the rest is like it."""

    shard: Shard
    samples: list[RawSample]
    rows: float
    seconds: float
    is_damaged: bool


def sample_pool(
    pool: Pool, shards: Sequence[Shard], models: Mapping[str, Any], needs: Sequence[Need], *, count: int = 3
) -> Sampled:
    """Looks at some shards, spread evenly over the listing.

    Args:
        pool: limits and sources.
        shards: `list_shards(pool)`.
        models: settings by name.
        needs: what inputs are prepared for.
        count: how many shards.

    Raises:
        ConfigError: `count` is not positive.
        InputError: not one sample could be read.
    """
    if count < 1:
        raise ConfigError(f"sample must be at least 1, got {count}")
    # The middles of equal parts of the listing: the last shard of a pool is often smaller than all others.
    chosen = [shards[i] for i in sorted({int((j + 0.5) * len(shards) / count) for j in range(count)})]
    arrays = {array for need in needs if (array := _array(models[need.model], need.modality))}
    looks = [_look(pool, shard, READ_ROWS // len(chosen), arrays) for shard in chosen]
    looks = [look for look in looks if look.samples]
    if not looks:
        names = ", ".join(shard.name for shard in chosen)
        raise InputError(f"the sampled shards must hold at least one sample, got none in {names}: sample more of them")
    decoding = _Decoding(pool, models, looks[0].shard)
    read = [sample for look in looks for sample in look.samples]
    some = [sample for look in looks for sample in look.samples[:DECODED]]
    decoded, seconds, _ = decoding.run(some, ())
    inputs, prepare = {}, {}
    for need in needs:
        array = _array(models[need.model], need.modality)
        if array:
            inputs[need.name] = np.stack([sample.vectors[array] for sample in some if array in sample.vectors])
            prepare[need.name] = 0.0
        else:
            _, with_need, found = decoding.run(some, (need,))
            prepare[need.name] = max(0.0, with_need - seconds) / len(some)
            inputs.update(found)
    total = sum(shard.size for shard in shards)
    sides = [item for item in zip(decoded["width"].to_pylist(), decoded["height"].to_pylist(), strict=True) if item[0]]
    facts = PoolFacts(
        shards=len(shards),
        bytes=total,
        samples=_extrapolate(looks, len(shards), total),
        image_bytes=float(np.mean([len(sample.image) for sample in read])),
        max_pixels=max((width * height for width, height in sides), default=0),
        caption_chars=float(np.mean([len(sample.caption or "") for sample in read])),
        reject_fraction=1 - decoded["reason"].null_count / len(some),
        supplies_uids=any(sample.uid for sample in read),
        read_seconds=sum(look.seconds for look in looks) / len(read),
        decode_seconds=seconds / len(some),
        sampled_shards=len(chosen),
        sampled_samples=len(read),
        decoded=len(some),
    )
    return Sampled(facts, _whole_table(decoding, looks, decoded), inputs, prepare)


def _look(pool: Pool, shard: Shard, most: int, arrays: set[str]) -> _Look:
    """Reads the beginning of a shard."""
    samples: list[RawSample] = []
    size = 0
    end = None
    started = time.process_time()
    for item in read_shard(pool, shard, arrays=arrays):
        if isinstance(item, ShardEnd):
            end = item
            break
        samples.append(item)
        size += len(item.image) + sum(vector.nbytes for vector in item.vectors.values())
        if size > READ_BYTES or len(samples) >= max(most, DECODED):
            break
    seconds = time.process_time() - started
    rows = len(samples) if end else max(len(samples), _count(pool, shard, samples, size))
    return _Look(shard, samples, rows, seconds, end is not None and end.damage is not None)


def _extrapolate(looks: Sequence[_Look], shards: int, total: int) -> int:
    """Samples of the pool. Of what a cut shard has lost nothing follows for the others."""
    whole = [look for look in looks if not look.is_damaged] or looks
    rows_S, size_S = np.array([(look.rows, look.shard.size) for look in whole], dtype=float).T
    by_shards, by_bytes = rows_S.mean() * shards, rows_S.sum() * total / max(1.0, size_S.sum())
    density_S = rows_S / size_S.clip(1)
    spread_of_rows, spread_of_density = rows_S.std() / rows_S.mean(), density_S.std() / density_S.mean()
    return max(1, round(float(by_shards if spread_of_rows < spread_of_density else by_bytes)))


def _count(pool: Pool, shard: Shard, samples: Sequence[RawSample], size: int) -> float:
    """How many samples a shard has of which only some were read."""
    source = pool.sources[shard.source]
    if shard.rows:
        return shard.rows[1] - shard.rows[0]
    if source.format == "images":
        return len(shard.files)
    if shard.url.endswith(".parquet"):
        try:
            return float(count_rows(shard.url, source))
        except DAMAGE:
            return 0
    # In a tar the position of the last image says how far reading came; elsewhere what was read does.
    passed = samples[-1].offset + len(samples[-1].image) if source.format == "webdataset" else size
    return len(samples) * max(1.0, shard.size / max(1, passed))


class _Decoding:
    """The real stage of a pass, called here: `pipeline.stream.chunks.decode_chunk`."""

    def __init__(self, pool: Pool, models: Mapping[str, Any], shard: Shard) -> None:
        self.has_images = pool.sources[shard.source].has_images
        self._job = Pass(Store(""), pool, "", models, "")
        self._shard = shard

    def run(
        self, samples: Sequence[RawSample], needs: Sequence[Need]
    ) -> tuple[pa.Table, float, dict[str, NDArray[Any]]]:
        """The rows of `samples`, the CPU seconds that they took, and the inputs of each need."""
        if needs:  # tokenizers and transforms are built at the first use
            self._decode(samples[:1], needs)
        started = time.process_time()
        table, inputs = self._decode(samples, needs) if self.has_images else (self.table(self._shard, samples), {})
        return table, time.process_time() - started, inputs

    def table(self, shard: Shard, samples: Sequence[RawSample]) -> pa.Table:
        """Rows of a shard without what only the images themselves tell."""
        work = ShardWork(shard, "", None, None, None, ())
        return samples_table(self._job, work, [(sample, None) for sample in samples])[0]

    def _decode(self, samples: Sequence[RawSample], needs: Sequence[Need]) -> tuple[pa.Table, dict[str, NDArray[Any]]]:
        work = ShardWork(self._shard, "", None, None, None, tuple((need, "") for need in needs))
        row = {"work": pack(work), "payload": pack((0, len(samples), list(samples), None))}
        _, _, table, inputs, *_ = unpack(decode_chunk(self._job, row)["payload"])
        return table, inputs


def _whole_table(decoding: _Decoding, looks: Sequence[_Look], decoded: pa.Table) -> pa.Table:
    """Rows of all samples that were read; those that were not decoded get what decoding told of others."""
    table = pa.concat_tables([decoding.table(look.shard, look.samples) for look in looks])
    if not decoding.has_images:
        return table
    for name in ("width", "height", "ext", "reason"):
        field = table.schema.field(name)
        values = pa.array(islice(cycle(decoded[name].to_pylist()), table.num_rows), field.type)
        table = table.set_column(table.schema.get_field_index(name), field, values)
    return table


def _array(settings: Any, modality: str) -> str | None:
    """The pool's own array that a model stands for; None where it is computed."""
    return settings.array(modality) if settings.library == "stored" else None
