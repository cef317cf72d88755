"""Bringing together what belongs together: one function over the shards, another over all rows that share a partition.

Where the rows fit one task there is only one partition, and Ray's tasks do it; beyond, it is Ray Data's hash shuffle.
(Measured: Ray Data's start-up costs seconds, more than the whole of a small pool.)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import ray

from pipeline.payload import pack, unpack

Item = TypeVar("Item")

PARTITION = "partition"
"""The int32 column by which the rows of the first function are brought together."""

ROWS_PER_PARTITION = 2_000_000
_PARTITION_BYTES = 64 * 2**20
"""What a partition has, more or less."""


def num_partitions(rows: int) -> int:
    """How many partitions hold this many rows, each small enough for one task."""
    return -(-max(rows, 1) // ROWS_PER_PARTITION)


def shuffle(
    items: Sequence[Item],
    produce: Callable[[Item], pa.Table],
    reduce: Callable[[pa.Table], pa.Table],
    *,
    partitions: int,
    workers: int,
) -> Iterator[pa.Table]:
    """Yields `reduce` of the rows of each block, where a block holds each of its partitions whole.

    Args:
        items: what `produce` is called with, once each.
        produce: gives rows with the column `PARTITION`; values from 0 to `partitions` - 1.
        reduce: gives what the caller wants to see: little, since it passes through the driver.
        partitions: how many.
        workers: CPU workers to spread over.
    """
    if partitions == 1:
        yield _in_one_task(items, produce, reduce, workers)
        return
    from ray.data import from_items  # here: most workers that import this module do without, and it takes a second

    rows = [{"item": pack(item)} for item in items]
    source = from_items(rows, override_num_blocks=min(len(rows), 8 * workers))
    # Else half of the CPUs are kept for what cannot begin before all is produced.
    source.context.op_resource_reservation_enabled = False
    # Ray sorts rows into partitions by tasks of 1 GiB: of less, where the workers would not have two each.
    batch_bytes = _PARTITION_BYTES * partitions // (2 * workers)
    source.context.shuffle_input_batch_bytes = min(batch_bytes, source.context.shuffle_input_batch_bytes)
    produced = source.map_batches(partial(_produce, produce), batch_size=1, batch_format="pyarrow")
    reduced = produced.repartition(partitions, keys=[PARTITION]).map_batches(
        partial(_reduce, reduce), batch_size=None, batch_format="pyarrow"
    )
    yield from reduced.iter_batches(batch_size=None, batch_format="pyarrow")


def _in_one_task(
    items: Sequence[Item], produce: Callable[[Item], pa.Table], reduce: Callable[[pa.Table], pa.Table], workers: int
) -> pa.Table:
    """The same with tasks: some that produce, each for several items, and one that reduces."""

    def produce_group(group: Sequence[Item]) -> pa.Table:
        return pa.concat_tables([produce(item) for item in group])

    def reduce_all(*tables: pa.Table) -> pa.Table:
        return reduce(pa.concat_tables(tables))

    size = -(-len(items) // (2 * workers))
    task = ray.remote(produce_group).options(num_cpus=1, max_retries=3)
    groups = [task.remote(list(items[start : start + size])) for start in range(0, len(items), size)]
    return ray.get(ray.remote(reduce_all).options(num_cpus=1, max_retries=3).remote(*groups))


def _produce(produce: Callable[[Any], pa.Table], batch: pa.Table) -> pa.Table:
    return produce(unpack(batch["item"][0].as_py()))


def _reduce(reduce: Callable[[pa.Table], pa.Table], block: pa.Table) -> pa.Table:
    return reduce(block)
