"""What the driver knows of a training while it runs: an actor that the workers report to."""

from collections.abc import Mapping
from typing import Any

from operators.errors import WinnowError


class Monitor:
    """Keeps the latest record, and the error that no new attempt can mend."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._latest: dict[str, Any] = {}
        self._failure: WinnowError | None = None

    def begin(self, samples_seen: int) -> None:
        """Takes note of where this run went on from; later attempts of the same run do not count."""
        if self._first is None:
            self._first = samples_seen

    def log(self, record: Mapping[str, Any]) -> None:
        """Takes a record of the metrics."""
        self._latest = dict(record)

    def fail(self, failure: WinnowError) -> None:
        """Takes note of why the training cannot go on; the first to say so is right."""
        self._failure = self._failure or failure

    def latest(self) -> tuple[int, dict[str, Any]]:
        """The samples seen before this run, and the newest record; empty before the first."""
        return self._first or 0, self._latest

    def failure(self) -> WinnowError | None:
        """Why the training cannot go on, if it cannot."""
        return self._failure
