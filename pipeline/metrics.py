"""What a job counts for Prometheus. Ray's own exporter serves it, on the metrics port of every node.

The driver counts what its steps have done, encoders and training workers their own time. Ray puts `ray_` before each
name, and adds the labels `NodeAddress`, `WorkerId` and `SessionName`. `docs/operations.md` has how to scrape it.

To count costs microseconds, and nothing where Ray was never imported. It never fails a job.
"""

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from operators.rejects import Reason


@dataclass(frozen=True)
class Metric:
    """A name that Prometheus knows, what it means, and its labels."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()


RUNS = Metric("winnow_run_info", "1 while a job holds its workspace, then 0.", ("run", "command", "workspace"))
ROWS = Metric("winnow_rows_total", "Rows, or samples of a training, that a step has done.", ("step",))
SHARDS = Metric("winnow_shards_total", "Shards that a step has done.", ("step",))
READ_BYTES = Metric("winnow_read_bytes_total", "Size of the shards that were read to their end.")
REJECTS = Metric("winnow_rejects_total", "Samples that cannot be used.", ("reason",))
DROPS = Metric("winnow_dropped_total", "Samples that a step dropped.", ("step", "reason"))
DAMAGED_SHARDS = Metric("winnow_shards_damaged_total", "Shards that could not be read to their end.", ("reason",))
STORAGE_RETRIES = Metric("winnow_storage_retries_total", "Operations of a store that were tried again.", ("error",))
ENCODER_BUSY = Metric("winnow_encoder_busy_seconds_total", "Time that an encoder worked, loading of models included.")
ENCODER_WAIT = Metric("winnow_encoder_wait_seconds_total", "Time that an encoder waited for its next chunk.")
DATA_WAIT = Metric("winnow_data_wait_seconds_total", "Time that a training worker waited for its next batch.")

METRICS = tuple(value for value in vars().values() if isinstance(value, Metric))


def count(metric: Metric, amount: float = 1, **labels: str) -> None:
    """Adds to a counter; nothing where the amount is not positive, as where a training goes back to a checkpoint."""
    if amount > 0 and "ray" in sys.modules:
        with contextlib.suppress(Exception):
            _made("Counter", metric).inc(amount, labels)


def show(metric: Metric, value: float, **labels: str) -> None:
    """Sets a gauge."""
    if "ray" in sys.modules:
        with contextlib.suppress(Exception):
            _made("Gauge", metric).set(value, labels)


def count_losses(step: str, counts: Mapping[str, int]) -> None:
    """Counts what the counts of a part, or of a chunk, say of samples that did not go on.

    Args:
        step: whose they are.
        counts: `rejected:<reason>` where samples are read, `dropped:<reason>` where they are judged. `unique_uid` drops
            what was rejected before, which is not counted again.
    """
    for name, number in counts.items():
        kind, _, reason = name.partition(":")
        if kind == "rejected" or (kind == "dropped" and reason == Reason.DUPLICATE_UID):
            count(REJECTS, number, reason=reason)
        elif kind == "dropped" and not is_reject(reason):
            count(DROPS, number, step=step, reason=reason)


def is_reject(reason: str) -> bool:
    """Whether samples go for this reason because they cannot be used, and not because a step wants others."""
    return reason in _REJECTS


_REJECTS = frozenset(map(str, Reason))


@cache
def _made(kind: str, metric: Metric) -> Any:
    from ray.util import metrics  # is there by now, or nobody counts

    return getattr(metrics, kind)(metric.name, metric.meaning, metric.labels)
