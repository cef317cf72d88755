"""`metrics.jsonl`, a line for each record, and the same numbers as TensorBoard events.

A training that resumes goes on after its checkpoint's step: later lines of an attempt that was lost are dropped. Each
training has lines of its own, beside its checkpoints; those of the latest are also at the top of the workspace.
"""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from tensorboardX import SummaryWriter

from pipeline.storage import Store

METRICS = "metrics.jsonl"
_FLUSH_SECONDS = 5.0


class MetricsLog:
    """The metrics of one training, written by one worker."""

    def __init__(self, store: Store, step: int, home: str, events: str) -> None:
        """Opens the log at a step.

        Args:
            store: the workspace.
            step: that the training goes on from; 0 begins anew.
            home: folder of the training in the workspace.
            events: folder of the TensorBoard events in the workspace. They need a local disk; elsewhere there are none.
        """
        self._store = store
        self._own = f"{home}/{METRICS}"
        self._lines = [line for line in self._read() if json.loads(line)["step"] <= step] if step else []
        self._flushed = time.monotonic()
        self._events = None
        if store.is_local:
            # The suffix keeps a resumed training, which may begin in the same second, out of the first one's file.
            self._events = SummaryWriter(
                store.path(events), purge_step=step + 1 if step else None, filename_suffix=f".{uuid.uuid4().hex[:8]}"
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a record, which has a `step`; it is seen on disk within seconds, in an object store at `flush`."""
        self._lines.append(json.dumps(record))
        if self._events is not None:
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, record["step"])
        if self._store.is_local and time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes all records."""
        data = "".join(f"{line}\n" for line in self._lines).encode()
        for name in (self._own, METRICS):
            self._store.replace(name, data)
        if self._events is not None:
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes for the last time."""
        self.flush()
        if self._events is not None:
            self._events.close()

    def _read(self) -> list[str]:
        return self._store.read(self._own).decode().splitlines() if self._store.exists(self._own) else []
