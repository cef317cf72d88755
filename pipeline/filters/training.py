"""Training a filter in one Ray task, on images that other tasks decode.

All images of a training are in the memory of that task, once, and besides in the object store, which may put them on
disk. A killed run begins the training again; a finished one is published, so it never happens twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from operators.errors import ConfigError
from pipeline.failures import causes
from pipeline.filters.drawing import Drawn
from pipeline.filters.memory import check_room
from pipeline.filters.pairs import PairReader, Pairs, join_pairs
from pipeline.placement import num_on_gpus
from pipeline.run import Plan, Run

Learn = Callable[[Sequence[Pairs]], Iterator[float | bytes]]
"""Given the sets of pairs, yields the loss of each update, then the trained filter's file. Picklable."""


@dataclass(frozen=True)
class Wanted:
    """A set of pairs to learn from: those of a plan's rows that were drawn, and what reads them."""

    plan: Plan
    reader: PairReader
    drawn: Drawn

    @property
    def size(self) -> int:
        """Bytes of the images."""
        return self.drawn.count * 3 * self.reader.size**2

    def decoded(self) -> list[Any]:
        """References to the pairs of each shard, which tasks decode into the object store."""
        task = ray.remote(PairReader.drawn).options(num_cpus=1, max_retries=3)
        read, draw = ray.put(self.reader), ray.put(self.drawn)
        return [
            task.remote(read, unit, shard, draw)
            for unit, shard in zip(self.plan.units, self.plan.run.shards, strict=True)
        ]


@dataclass(frozen=True)
class Effort:
    """What a training costs: threads of its task, on a CPU, updates, and the images of each."""

    threads: int
    updates: int
    batch_size: int


def train(run: Run, title: str, learn: Learn, sets: Sequence[Wanted], effort: Effort) -> bytes:
    """Trains a filter and gives its file.

    Args:
        run: the run.
        title: of what the progress shows.
        learn: does it.
        sets: what it learns from.
        effort: what it costs.

    Raises:
        InputError: the images are more than fit.
        ConfigError: the memory was not enough.
    """
    side = sets[0].reader.size
    what = f"{sum(each.drawn.count for each in sets):,} images of {side} x {side} pixels"
    check_room(title, sum(each.size for each in sets), what, "lower image_size, or give fewer")
    # Its CPUs and its GPU must be those of one node, or it would wait for ever.
    gpus = min(1, num_on_gpus(run.gpus, effort.threads))
    task = ray.remote(_learn).options(num_cpus=effort.threads, num_gpus=gpus, num_returns="streaming", max_retries=3)
    try:
        with run.progress.step(title, effort.updates, unit="updates") as progress:
            for made in task.remote(title, learn, [each.decoded() for each in sets], effort.batch_size):
                result = ray.get(made)
                if isinstance(result, bytes):
                    return result
                progress.advance(result)
    except ray.exceptions.RayError as error:
        if any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in causes(error)):
            raise out_of_memory(title, effort.batch_size) from error
        raise
    raise AssertionError("a training ends with its filter")


def out_of_memory(title: str, batch_size: int) -> ConfigError:
    """Says which settings decide how much memory a training takes."""
    rule = "its task must fit into the memory of a node, and of a GPU where there is one"
    return ConfigError(f"{title}: {rule}, got out of memory: lower batch_size (got {batch_size}) or image_size")


_REPORT_UPDATES = 20


def _learn(title: str, learn: Learn, sets: Sequence[list[Any]], batch_size: int) -> Iterator[int | bytes]:
    """Yields numbers of updates that have been made since the last, then the file."""
    import torch  # the driver has no use for it

    try:
        updates = 0
        for result in learn([join_pairs(ray.get(references)) for references in sets]):
            if isinstance(result, bytes):
                yield updates
                yield result
                return
            updates += 1
            if updates == _REPORT_UPDATES:
                yield updates
                updates = 0
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise out_of_memory(title, batch_size) from error
