"""The job's side: `status.json` in its workspace, replaced at the borders of steps and every ten seconds between.

    format_version, run, job, state     `state` is `running`, `done`, `failed` or `interrupted`
    attempt, process                    of the lease that the job holds or held
    started, updated                    seconds since 1970, by the clock of the job's machine
    steps                               what `StepStatus` says of each that began, in order
    error                               {type, message, exit_code} of what failed; null otherwise

It is no artifact: nothing is made from it, and nothing is wrong with a workspace that has none. A thread writes it, so
that a store that is slow to answer holds nobody up, and what cannot be written is left out.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from operators.errors import WinnowError, WorkspaceError
from pipeline import logs, metrics
from pipeline.claim import Claim
from pipeline.failures import disk_error, winnow_error
from pipeline.lease import claim_on
from pipeline.progress import DONE, FAILED, INTERRUPTED, Progress, StepProgress
from pipeline.storage import Store, to_json

STATUS = "status.json"
FORMAT_VERSION = 1
RUNNING = "running"

_HOW = {RUNNING: "did not end", FAILED: "failed", INTERRUPTED: "was interrupted"}
_INTERVAL_SECONDS = 10.0
_LAST_WRITE_SECONDS = 5.0
_MOST_WORDS = 1000
"""Characters of an error that is not ours."""

_at_work: list[str] = []
"""Workspaces that this process works in. Prometheus is told of the outermost: it can join one to a process, not two."""


@dataclass(frozen=True)
class StepStatus:
    """One step.

    Attributes:
        name: as in the log.
        state: `running`, `done`, `failed` or `interrupted`.
        unit: what is counted.
        total: how many there will be; None where that is not known.
        rows: how many are done.
        counts: further totals, by name.
        remarks: what else there is to say.
        seconds: since it began, until it ended.
        rate: units per second.
        seconds_left: at that rate; None where that is not known.
    """

    name: str
    state: str
    unit: str
    total: int | None
    rows: int
    counts: Mapping[str, int]
    remarks: tuple[str, ...]
    seconds: float
    rate: float
    seconds_left: float | None


@contextlib.contextmanager
def working(store: Store, job: str, progress: Progress) -> Iterator[Progress]:
    """Holds a workspace for a job, and keeps its `status.json`.

    Args:
        store: the workspace.
        job: the command's name.
        progress: of the job.

    Yields:
        the progress to use inside: what it shows is in the status, too.

    Raises:
        WorkspaceError: another run has it, or has taken it over since.
    """
    with store.locked(progress.note), logs.bound(workspace=store.url), _counted(store, job):
        claim = claim_on(store.url)
        assert claim is not None, f"{store.url} is held"
        if len(_at_work) == 1 and (before := _stopped(store, job)):
            progress.note(f"going on after run {before}: what is stored for the same settings is used")
        status = _Status(store, job, claim)
        try:
            yield Reporting(progress, status)
        except BaseException as error:
            status.end(*_outcome(error))
            raise
        status.end(DONE)


def _stopped(store: Store, job: str) -> str | None:
    """The last job of a workspace and how it ended, where it is of the same kind and did not end well."""
    try:
        record = store.read_json(STATUS)
        if record["format_version"] != FORMAT_VERSION or record["job"] != job or record["state"] == DONE:
            return None
        return f"{record['run']}, which {_HOW[record['state']]}"
    except (OSError, WorkspaceError, TypeError, KeyError):  # none, or none that can be read: it decides nothing
        return None


@contextlib.contextmanager
def _counted(store: Store, job: str) -> Iterator[None]:
    labels = {"run": logs.run_id(), "command": job, "workspace": store.url}
    outermost = not _at_work
    _at_work.append(store.url)
    try:
        if outermost:
            metrics.show(metrics.RUNS, 1, **labels)
        yield
    finally:
        _at_work.remove(store.url)
        if outermost:
            metrics.show(metrics.RUNS, 0, **labels)


class Reporting(Progress):
    """A display that is shown elsewhere, too."""

    def __init__(self, display: Progress, status: "_Status") -> None:
        super().__init__(display.clock)
        self._display = display
        self._status = status

    def note(self, text: str, **fields: Any) -> None:
        """Shows one line."""
        self._display.note(text, **fields)

    def started(self, step: StepProgress) -> None:
        """Shows that a step began."""
        self._status.started(step)
        self._display.started(step)

    def advanced(self, step: StepProgress) -> None:
        """Shows how far it is."""
        self._display.advanced(step)

    def ended(self, step: StepProgress, end: str) -> None:
        """Shows that it ended."""
        self._status.ended(step, end)
        self._display.ended(step, end)


@dataclass
class _Watched:
    """A step, and what it was when it ended."""

    step: StepProgress
    last: StepStatus | None = None

    @property
    def now(self) -> StepStatus:
        return self.last or step_status(self.step, RUNNING)


@dataclass
class _Status:
    """What is known of a job, and the thread that writes it. Only one thread changes each field."""

    store: Store
    job: str
    claim: Claim
    state: str = RUNNING
    error: dict[str, Any] | None = None
    steps: list[_Watched] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._run = logs.run_id()
        self._started = time.time()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._write_until_the_end, name="status", daemon=True)
        self._thread.start()

    def started(self, step: StepProgress) -> None:
        self.steps.append(_Watched(step))
        self._changed.set()

    def ended(self, step: StepProgress, state: str) -> None:
        for watched in self.steps:
            if watched.step is step:
                watched.last = step_status(step, state)
        self._changed.set()

    def end(self, state: str, error: dict[str, Any] | None = None) -> None:
        """Has the last word written; waits for it a few seconds, and no longer."""
        self.error = error
        self.state = state
        self._changed.set()
        self._thread.join(_LAST_WRITE_SECONDS)

    def _write_until_the_end(self) -> None:
        state = RUNNING
        while state == RUNNING:
            self._changed.clear()
            state = self.state
            with contextlib.suppress(Exception):  # of the store, or of a lease that is lost
                self.store.replace(STATUS, to_json(self._record()))
            if state == RUNNING:
                self._changed.wait(_INTERVAL_SECONDS)

    def _record(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "run": self._run,
            "job": self.job,
            "state": self.state,
            "attempt": self.claim.holder.attempt,
            "process": asdict(self.claim.holder.process),
            "started": self._started,
            "updated": time.time(),
            "steps": [asdict(watched.now) for watched in list(self.steps)],
            "error": self.error,
        }


def step_status(step: StepProgress, state: str) -> StepStatus:
    """What a step is at this moment."""
    return StepStatus(
        name=step.name,
        state=state,
        unit=step.unit,
        total=step.total,
        rows=step.rows,
        counts=dict(step.counts),
        remarks=step.remarks,
        seconds=round(step.seconds, 3),
        rate=round(step.rate, 3),
        seconds_left=None if step.seconds_left is None else round(step.seconds_left, 3),
    )


def _outcome(error: BaseException) -> tuple[str, dict[str, Any] | None]:
    """How a job ended that raised, and what to say of it."""
    if not isinstance(error, Exception):
        return INTERRUPTED, None
    if (ours := winnow_error(error)) is not None:
        kind, message, code = type(ours).__name__, str(ours), ours.exit_code
    elif (of_disk := disk_error(error)) is not None:
        kind, message, code = "OSError", of_disk, 2
    else:
        kind, message, code = type(error).__name__, str(error)[:_MOST_WORDS], WinnowError.exit_code
    return FAILED, {"type": kind, "message": message, "exit_code": code}
