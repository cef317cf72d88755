"""Following a job on a cluster: its log as it comes, through lost connections, and how it ended."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import TextIO

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from operators.errors import WinnowError

_RETRY_SECONDS = 2.0
_GIVE_UP_SECONDS = 600.0
_SILENT_SECONDS = 60.0
"""After so much silence the log is asked for anew: of a connection that went without a word nothing would ever come."""

_LOST = (OSError, RuntimeError, aiohttp.ClientError)
"""What the client raises where the server does not answer, or a proxy does in its place."""


def follow(client: JobSubmissionClient, submission_id: str, out: TextIO, note: Callable[[str], None]) -> JobDetails:
    """Writes a job's log until the job ends.

    Args:
        client: of the cluster.
        submission_id: of the job, which may have ended already.
        out: where its log goes, the whole of it, once.
        note: is told of connections that are lost and come back.

    Returns:
        how it ended.

    Raises:
        WinnowError: the cluster has forgotten the job, or could not be reached for ten minutes.
    """
    log = _Log(out)
    is_lost = False
    unanswered: float | None = None
    ended: JobDetails | None = None

    def connected() -> None:
        nonlocal is_lost
        if is_lost:
            note("connected again")
        is_lost = False

    while True:
        try:
            job = client.get_job_info(submission_id)
            ended = job if job.status.is_terminal() else None
            if is_lost or ended:
                log.show(client.get_job_logs(submission_id), start=0)  # what no connection has brought
            if ended:
                return ended
            unanswered = None
            with contextlib.suppress(TimeoutError):
                asyncio.run(_tail(client, submission_id, log, connected))
        except _LOST as error:
            if error is log.error:
                raise
            if "status code 404" in str(error):
                raise WinnowError(
                    f"{submission_id} must be known to the cluster, got: {error} If its head was started anew, the "
                    "same command submits the job again, which resumes"
                ) from error
            if not is_lost:
                note(f"the connection was lost, and {submission_id} goes on; trying again ({_describe(error)})")
                is_lost = True
            unanswered = unanswered or time.monotonic()
            if time.monotonic() - unanswered > _GIVE_UP_SECONDS:
                if ended:
                    note(f"the rest of its log could not be had ({_describe(error)})")
                    return ended
                raise WinnowError(
                    f"the cluster must answer within {_GIVE_UP_SECONDS:.0f} seconds, got {_describe(error)}: "
                    f"{submission_id} may be running still, and the same command follows it again"
                ) from error
        time.sleep(_RETRY_SECONDS)


def exit_code(job: JobDetails) -> int:
    """What a command that ran the job here would have returned; 1 where the job could not begin."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return 128 + signal.SIGTERM
    code = job.driver_exit_code or WinnowError.exit_code
    return int(code if code > 0 else 128 - code)  # of a process that a signal has ended, as a shell has it


class _Log:
    """A log, of which the part that was shown is not shown again; `error` is why it could not be shown."""

    def __init__(self, out: TextIO) -> None:
        self.error: OSError | None = None
        self._out = out
        self._shown = 0

    def show(self, text: str, start: int) -> None:
        """Shows what is new of a text that begins at a character of the log."""
        new = text[max(0, self._shown - start) :]
        self._shown += len(new)
        try:
            self._out.write(new)
            self._out.flush()
        except OSError as error:  # such as a pipe that nobody reads any more
            self.error = error
            raise


async def _tail(client: JobSubmissionClient, submission_id: str, log: _Log, connected: Callable[[], None]) -> None:
    """Shows the log until the server closes it. Raises TimeoutError after a silence."""
    start = 0
    chunks = aiter(client.tail_job_logs(submission_id))
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks), _SILENT_SECONDS)
        except StopAsyncIteration:
            return
        connected()
        log.show(chunk, start)
        start += len(chunk)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
