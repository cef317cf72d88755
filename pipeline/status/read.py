"""The reader's side: `status.json` and the lease of a workspace, put together.

A job that ended says so itself. One that was killed cannot: its status says that it runs, and its lease tells that it
does not, at once where its process can be looked for, elsewhere by the age of the last renewal. That age compares the
clock of the store with the one here, which is good enough for people; who takes a workspace over does without clocks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from operators.errors import WorkspaceError
from pipeline.claim import Holder, holder_of, seconds_since_renewal
from pipeline.progress import DONE, FAILED, INTERRUPTED, describe_seconds
from pipeline.status.write import FORMAT_VERSION, RUNNING, STATUS, StepStatus
from pipeline.storage import Store

EXIT_CODES = {RUNNING: 0, DONE: 0, FAILED: 4, INTERRUPTED: 5}


@dataclass(frozen=True)
class Status:
    """What is known of the last job of a workspace.

    Attributes:
        workspace: where.
        state: `running`, `done`, `failed` or `interrupted`.
        job: the command's name.
        run: its id, as in its log.
        host, pid: where it runs, or ran.
        started, updated: seconds since 1970, by the clock there.
        steps: that began, in order.
        error: {type, message, exit_code} of what failed.
        renewed_seconds: since its lease was last seen renewed; None where it holds none.
        held_by: who else has the workspace, as an export or a clean, which keep no status.
    """

    workspace: str
    state: str
    job: str
    run: str
    host: str
    pid: int
    started: float
    updated: float
    steps: Sequence[StepStatus]
    error: dict[str, Any] | None = None
    renewed_seconds: float | None = None
    held_by: str | None = None

    @property
    def exit_code(self) -> int:
        """That `winnow status` ends with."""
        return EXIT_CODES[self.state]

    @property
    def current(self) -> str:
        """The steps that it is at, or was when it stopped."""
        at = (RUNNING, INTERRUPTED)  # who was killed had no time to say the latter
        return ", ".join(step.name for step in self.steps if step.state in at) or "none"

    @property
    def sentences(self) -> list[str]:
        """All of it but the steps, for people."""
        where, again = f"{self.host} (process {self.pid})", f"the same `winnow {self.job}` command goes on from there"
        since, until = _moment(self.started), _moment(self.updated)
        took = describe_seconds(max(0.0, self.updated - self.started))
        match self.state:
            case "running":
                seen = (
                    "" if self.renewed_seconds is None else f", last sign {describe_seconds(self.renewed_seconds)} ago"
                )
                said = [f"{self.job} is running at step {self.current}: on {where} since {since}{seen}, run {self.run}"]
            case "done":
                said = [f"{self.job} is done: at {until}, after {took}, on {where}, run {self.run}"]
            case "failed":
                assert self.error is not None
                said = [f"{self.job} failed: at {until}, after {took}, on {where}, run {self.run}"]
                said += [f"{self.error['type']}: {self.error['message']} (exit code {self.error['exit_code']})"]
                said += [f"once that is put right, {again}"]
            case _:
                at = f"last seen at {until} on {where}, run {self.run}"
                said = [f"{self.job} was interrupted at step {self.current}: {at}", again]
        return said + ([f"in use at present by {self.held_by}"] if self.held_by else [])


def read_status(store: Store) -> Status:
    """Looks at a workspace, without touching it.

    Raises:
        WorkspaceError: no job that keeps a status has begun there.
    """
    found = _look(store)
    # One that ends, or begins, between two looks seems to be neither here nor there.
    return _look(store) if found.state == INTERRUPTED else found


def _look(store: Store) -> Status:
    holder = holder_of(store)
    silence = seconds_since_renewal(store) if holder else None
    record = _read(store, holder)
    own = holder is not None and holder.attempt == record["attempt"]
    state = record["state"]
    if state == RUNNING and not (own and holder and _is_alive(holder, silence)):
        state = INTERRUPTED
    other = None
    if holder is not None and not own and _is_alive(holder, silence):
        other = f"{holder.name}, since {holder.since}"
    return Status(
        workspace=store.url,
        state=state,
        job=record["job"],
        run=record["run"],
        host=record["process"]["host"],
        pid=record["process"]["pid"],
        started=record["started"],
        updated=record["updated"],
        steps=[StepStatus(**step | {"remarks": tuple(step["remarks"])}) for step in record["steps"]],
        error=record["error"],
        renewed_seconds=silence if own else None,
        held_by=other,
    )


def _is_alive(holder: Holder, silence: float | None) -> bool:
    patience = holder.renew_seconds * holder.missed_renewals
    return not holder.process.is_gone() and (silence is None or silence <= patience)


def _read(store: Store, holder: Holder | None) -> dict[str, Any]:
    rule = f"{store.url} must be a workspace that a job has begun to work in"
    try:
        record: dict[str, Any] = store.read_json(STATUS)
    except FileNotFoundError as error:
        who = f", which {holder.name} has had since {holder.since}" if holder else ""
        raise WorkspaceError(f"{rule}, got one without {STATUS}{who}") from error
    if record.get("format_version") != FORMAT_VERSION:
        raise WorkspaceError(f"{rule}, got a {STATUS} of another version, {record.get('format_version')}")
    return record


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
