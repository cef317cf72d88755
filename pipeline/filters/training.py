"""Training a filter in one Ray task, on images that other tasks decode.

All images of a training are in the memory of that task. A killed run begins the training again; a finished one is
published, so it never happens twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from operators.errors import InputError
from pipeline.filters.drawing import Drawn
from pipeline.filters.pairs import PairReader, Pairs, join_pairs
from pipeline.run import Plan, Run

MOST_BYTES = 32 * 2**30
"""Of the images of one training; they are in memory twice for a moment."""

Learn = Callable[[Sequence[Pairs]], Iterator[float | bytes]]
"""Given the sets of pairs, yields the loss of each update, then the trained filter's file. Picklable."""


def decoded(plan: Plan, reader: PairReader, drawn: Drawn) -> list[Any]:
    """References to the drawn pairs of each shard of a plan, which tasks decode into the object store.

    Raises:
        InputError: there are more of them than fit.
    """
    size = drawn.count * 3 * reader.size**2
    if size > MOST_BYTES:
        rule = f"{plan.name} must learn from images of at most {MOST_BYTES / 2**30:.0f} GiB in all"
        got = f"{size / 2**30:.1f} GiB: {drawn.count} images of {reader.size} x {reader.size} pixels"
        raise InputError(f"{rule}, got {got}; lower image_size, or give fewer")
    task = ray.remote(PairReader.drawn).options(num_cpus=1, max_retries=3)
    read, draw = ray.put(reader), ray.put(drawn)
    return [task.remote(read, unit, shard, draw) for unit, shard in zip(plan.units, plan.run.shards, strict=True)]


@dataclass(frozen=True)
class Effort:
    """What a training costs: threads of its task, on a CPU, and updates."""

    threads: int
    updates: int


def train(run: Run, title: str, learn: Learn, sets: Sequence[list[Any]], effort: Effort) -> bytes:
    """Trains a filter and gives its file.

    Args:
        run: the run.
        title: of what the progress shows.
        learn: does it.
        sets: references of `decoded`, one list a set.
        effort: what it costs.
    """
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    task = ray.remote(_learn).options(num_cpus=effort.threads, num_gpus=gpus, num_returns="streaming", max_retries=3)
    with run.progress.step(title, effort.updates, unit="updates") as progress:
        for made in task.remote(learn, sets):
            result = ray.get(made)
            if isinstance(result, bytes):
                return result
            progress.advance(result)
    raise AssertionError("a training ends with its filter")


_REPORT_UPDATES = 20


def _learn(learn: Learn, sets: Sequence[list[Any]]) -> Iterator[int | bytes]:
    """Yields numbers of updates that have been made since the last, then the file."""
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
