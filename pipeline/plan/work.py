"""What work costs, and what all formulas look at."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline.plan.encoding import Encoding
from pipeline.plan.machines import Machines
from pipeline.plan.rates import Rates
from pipeline.plan.rehearsal import Rehearsal
from pipeline.plan.sample import PoolFacts, Sampled
from pipeline.pool import Pool
from pipeline.run import ROWS_PER_ACTOR

TASK_STARTS = 0.007
"""What a Ray task costs in its driver, raylet and worker, as a share of what a worker costs that starts: some 10 ms on
a machine where that takes 1.4 s. Counted over the 3,100 tasks of CIFAR-10's two passes, Ray 2.60."""

_DRIVERS_SHARE = 0.5
"""Of that, what the driver itself does, where Ray Data schedules."""

MANIFEST_BYTES = 1_000
"""Of a manifest besides the entries of its parts."""

_NOTHING = Encoding(dim=1, row_bytes=0.0, origin="given")


@dataclass(frozen=True)
class Work:
    """What some work costs.

    Attributes:
        read, written: bytes, of and to the pool's stores, the workspace and the targets of exports.
        stored: of what is written, the bytes that stay.
        shuffled: bytes that travel between workers through Ray's object stores.
        cpu_seconds, gpu_seconds: of all workers together, without their starts.
        start_seconds: CPU seconds of the processes that have to start for it.
        tasks: of Ray's.
        driver_seconds: of `cpu_seconds`, those that the driver spends, one task after the other.
        worker_bytes: memory of the largest worker at its peak, Ray's object store apart.
        kept: the share of its rows that go on; None where only the run can tell.
    """

    read: float = 0.0
    written: float = 0.0
    stored: float = 0.0
    shuffled: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    start_seconds: float = 0.0
    tasks: float = 0.0
    driver_seconds: float = 0.0
    worker_bytes: float = 0.0
    kept: float | None = 1.0

    def __add__(self, other: "Work") -> "Work":
        """Both, one after the other: memory is that of the larger, and what is kept is what the later one keeps."""
        added = {item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)[:9]}
        return Work(**added, worker_bytes=max(self.worker_bytes, other.worker_bytes), kept=other.kept)

    def with_tasks(self, worker_seconds: float) -> "Work":
        """The same with what its tasks cost.

        Args:
            worker_seconds: what a worker costs that starts.
        """
        seconds = self.tasks * TASK_STARTS * worker_seconds
        return replace(self, cpu_seconds=self.cpu_seconds + seconds, driver_seconds=_DRIVERS_SHARE * seconds)

    def keeping(self, kept: float | None) -> "Work":
        """The same with another share kept."""
        return replace(self, kept=kept)


@dataclass(frozen=True)
class Inputs:
    """What all formulas look at."""

    pool: Pool
    models: Mapping[str, Any]
    threads: int
    sampled: Sampled
    rates: Rates
    machines: Machines
    rehearsal: Rehearsal

    @property
    def facts(self) -> PoolFacts:
        """Of the pool."""
        return self.sampled.facts

    @property
    def workers(self) -> int:
        """CPU workers."""
        return self.machines.cpus

    def encoding(self, model: str, modality: str = "image") -> Encoding:
        """Of a model's tower; of nothing where no sample had anything for it to encode."""
        return self.rates.encodings.get(f"{model}.{modality}", _NOTHING)

    def actors(self, rows: float, threads: int = 1) -> int:
        """How many actors share so many rows: those that there is room for, and each worth its start."""
        return max(1, min(self.workers // threads, math.ceil(rows / ROWS_PER_ACTOR)))

    def groups(self) -> float:
        """Tasks of a step that goes over the shards, which travel in groups."""
        size = max(1, min(64, self.facts.shards // (8 * self.workers)))
        return math.ceil(self.facts.shards / size)
