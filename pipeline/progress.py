"""What a job shows while it works: each step's rows, rate and time left.

    with open_progress() as progress:
        with progress.step("embed", total=50_000) as step:
            step.advance(32, rejected=1)

On a terminal the lines are live. Anywhere else they are log lines, at most one in five seconds for each step, or JSON
(`pipeline.logs`) where that is asked for:

    2025-06-01T12:00:05Z embed: 12,000 of 50,000 rows (24 %), 2,400 rows/s, 16 s left, 3 rejected

Whatever shows them, rows are counted for Prometheus (`pipeline.metrics`).
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from pipeline import logs, metrics

DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"
"""How a step ends, and a job."""

_ENDED = {DONE: "done,", FAILED: "failed after", INTERRUPTED: "interrupted after"}
_COUNTED = ("rows", "samples")
"""Units that Prometheus is told of."""


class StepProgress:
    """The progress of one step; a context manager, closed when the step ends.

    Attributes:
        rows: rows done so far.
        counts: further totals, by name: kept, rejected, ...
        remarks: what else there is to say of it at present.
    """

    def __init__(self, display: "Progress", name: str, total: int | None, unit: str) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.remarks: tuple[str, ...] = ()
        self._display = display
        self._started = display.clock()

    def advance(self, rows: int, **counts: int) -> None:
        """Counts rows as done; `counts` are added to the totals of their names."""
        self.rows += rows
        self.counts.update(counts)
        if self.unit in _COUNTED:
            metrics.count(metrics.ROWS, rows, step=self.name)
        self._display.advanced(self)

    @property
    def seconds(self) -> float:
        """Time since the step began."""
        return self._display.clock() - self._started

    @property
    def rate(self) -> float:
        """Rows per second since the step began; 0 before the first."""
        return self.rows / seconds if (seconds := self.seconds) > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time left at the mean rate so far; None when it is not known."""
        if self.total is None or not self.rate:
            return None
        return max(self.total - self.rows, 0) / self.rate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.ended(self, DONE if kind is None else FAILED if issubclass(kind, Exception) else INTERRUPTED)


class Progress:
    """The display of a job; a context manager. This one shows nothing, for use as a library."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock

    def step(self, name: str, total: int | None = None, unit: str = "rows") -> StepProgress:
        """Begins a step. Steps may overlap.

        Args:
            name: the step's name in the config.
            total: how many rows it will do, None when that is not known.
            unit: what is counted, in the plural.
        """
        step = StepProgress(self, name, total, unit)
        self.started(step)
        return step

    def note(self, text: str, **fields: Any) -> None:
        """Shows one line at once, whatever else is on display.

        Args:
            text: the line.
            **fields: what a log in JSON says besides; its `level` is one of `logging`, `INFO` by default.
        """

    def started(self, step: StepProgress) -> None:
        """Called once when a step begins."""

    def advanced(self, step: StepProgress) -> None:
        """Called at each advance."""

    def ended(self, step: StepProgress, end: str) -> None:
        """Called once when a step is done, failed or interrupted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the display."""


def open_progress(stream: TextIO | None = None) -> Progress:
    """The display that fits a stream (default: standard error): live on a terminal, log lines elsewhere, or JSON."""
    if logs.wants_json():
        return JsonProgress(sys.stderr)
    stream = stream or sys.stderr
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalProgress(console)
    return LogProgress(stream)


class LogProgress(Progress):
    """Timestamped lines: at the start, at the end, and at most one per interval for each step between."""

    def __init__(
        self,
        stream: TextIO,
        interval_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock)
        self._stream = stream
        self._interval_seconds = interval_seconds
        self._now = now
        self._last_line: dict[StepProgress, float] = {}

    def note(self, text: str, **fields: Any) -> None:
        """Writes the text as a line of its own."""
        self._say(text, fields)

    def _say(self, text: str, fields: dict[str, Any]) -> None:
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._now()))
        print(f"{timestamp} {text}", file=self._stream, flush=True)

    def started(self, step: StepProgress) -> None:
        """Writes that the step began."""
        self._last_line[step] = self.clock()
        size = f", {step.total:,} {step.unit}" if step.total is not None else ""
        self._say(f"{step.name}: started{size}", _fields(step, "started"))

    def advanced(self, step: StepProgress) -> None:
        """Writes a line if the last one is old enough."""
        if self.clock() - self._last_line[step] >= self._interval_seconds:
            self._last_line[step] = self.clock()
            text = ", ".join([describe_rows(step), describe_rate(step), *describe_counts(step)])
            self._say(f"{step.name}: {text}", _fields(step, "progress"))

    def ended(self, step: StepProgress, end: str) -> None:
        """Writes how the step ended."""
        del self._last_line[step]
        done = f"{step.rows:,} {step.unit} in {describe_seconds(step.seconds)}"
        self._say(", ".join([f"{step.name}: {_ENDED[end]} {done}", *describe_counts(step)]), _fields(step, end))


class JsonProgress(LogProgress):
    """The same lines through `pipeline.logs`, with their numbers."""

    def _say(self, text: str, fields: dict[str, Any]) -> None:
        level = logging.ERROR if fields.get("event") == "failed" else logging.INFO
        logs.log(fields.pop("level", level), text, **fields)


def _fields(step: StepProgress, event: str) -> dict[str, Any]:
    """The numbers behind a line."""
    left = step.seconds_left
    return {
        "step": step.name,
        "event": event,
        "rows": step.rows,
        "total": step.total,
        "unit": step.unit,
        "counts": dict(step.counts) or None,
        "remarks": list(step.remarks) or None,
        "seconds": round(step.seconds, 3),
        "rate": round(step.rate, 3),
        "seconds_left": None if left is None or event != "progress" else round(left, 3),
    }


class TerminalProgress(Progress):
    """A live line for each step, by rich."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._tasks: dict[StepProgress, TaskID] = {}

    def note(self, text: str, **fields: Any) -> None:
        """Prints the text above the live lines."""
        self._rich.console.print(Text(text))

    def started(self, step: StepProgress) -> None:
        """Adds the step's line."""
        self._tasks[step] = self._rich.add_task(step.name, total=step.total, text=describe_rows(step))

    def advanced(self, step: StepProgress) -> None:
        """Moves the step's line."""
        text = ", ".join([describe_rows(step), describe_rate(step), *describe_counts(step)])
        self._rich.update(self._tasks[step], completed=step.rows, text=text)

    def ended(self, step: StepProgress, end: str) -> None:
        """Leaves the step's last line on the screen."""
        task = self._tasks.pop(step)
        done = f"{_ENDED[end]} {step.rows:,} {step.unit} in {describe_seconds(step.seconds)}"
        total = max(step.rows, 1) if end == DONE else step.total
        completed = total if end == DONE else step.rows
        self._rich.update(task, total=total, completed=completed, text=", ".join([done, *describe_counts(step)]))
        self._rich.stop_task(task)

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()


def describe_rows(step: StepProgress) -> str:
    """`12,000 of 50,000 rows (24 %)`, or `12,000 rows` without a total."""
    if step.total is None:
        return f"{step.rows:,} {step.unit}"
    percent = f" ({100 * step.rows // step.total} %)" if step.total else ""
    return f"{step.rows:,} of {step.total:,} {step.unit}{percent}"


def describe_rate(step: StepProgress) -> str:
    """`2,400 rows/s, 16 s left`; the time left only where it is known."""
    rate = f"{step.rate:,.0f}" if step.rate >= 10 else f"{step.rate:.2g}"
    left = step.seconds_left
    return f"{rate} {step.unit}/s" + (f", {describe_seconds(left)} left" if left is not None else "")


def describe_counts(step: StepProgress) -> list[str]:
    """`3 rejected` for each count that is not 0, in the order in which they first came; then the remarks."""
    return [*(f"{count:,} {name}" for name, count in step.counts.items() if count), *step.remarks]


def describe_seconds(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
