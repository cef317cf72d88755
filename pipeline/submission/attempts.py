"""The attempts of one job on a cluster: found again by the job's name, so that a command can be repeated.

The first attempt has the name as its submission id, the next ones `<name>-2`, `<name>-3`. One that runs is not started
twice; one that failed or was stopped has a successor, which finds in the workspace what was done. Jobs of one series,
such as the nights of a config, do the same work, each under a name of its own: one that runs stands for the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from operators.errors import ConfigError

_NAME, _SERIES, _NUMBER, _DIGEST = "winnow.name", "winnow.series", "winnow.attempt", "winnow.digest"
"""Of the metadata of a submission."""


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes:
        name: equal for equal jobs.
        series: equal for jobs that are not to run at once.
        digest: of the code and the config.
        entrypoint: a shell command.
        runtime_env: as Ray takes it.
    """

    name: str
    series: str
    digest: str
    entrypoint: str
    runtime_env: Mapping[str, Any]


def start(client: JobSubmissionClient, job: Job, *, again: bool, note: Callable[[str], None]) -> str:
    """Submits a job unless it runs, or has succeeded, already.

    Args:
        client: of the cluster.
        job: what is to be run.
        again: run it also where it has succeeded.
        note: is told which of these it was.

    Returns:
        the submission id of the attempt that runs, or has succeeded.

    Raises:
        ConfigError: the name is taken by another job.
    """
    refused = ""
    while True:
        latest = find_latest(client, job)
        if latest and _stands_for(latest, job, again=again, note=note):
            return str(latest.submission_id)
        number = int(latest.metadata[_NUMBER]) + 1 if latest else 1
        submission_id = job.name if number == 1 else f"{job.name}-{number}"
        if submission_id == refused:
            raise ConfigError(f"--id must not be that of a job of another kind, got {submission_id}")
        try:
            client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=submission_id,
                runtime_env=dict(job.runtime_env),
                metadata={_NAME: job.name, _SERIES: job.series, _NUMBER: str(number), _DIGEST: job.digest},
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            refused = submission_id  # most likely the same command, at the same time: its job is then found
            continue
        note(f"submitted as {submission_id}{_after(latest)}")
        return submission_id


def _after(latest: JobDetails | None) -> str:
    if latest is None:
        return ""
    relation = "once more after" if latest.status == JobStatus.SUCCEEDED else "which goes on where"
    return f", {relation} {latest.submission_id} ended ({latest.status})"


def stop(client: JobSubmissionClient, job: Job, note: Callable[[str], None]) -> None:
    """Stops the attempt of a job that runs. Raises ConfigError where the cluster knows no such job."""
    latest = find_latest(client, job)
    if latest is None:
        raise ConfigError(f"--stop must be given for a job that was submitted here, got none of the name {job.name}")
    if latest.status.is_terminal():
        note(f"{latest.submission_id} has ended already ({latest.status})")
        return
    client.stop_job(latest.submission_id)
    note(f"{latest.submission_id} was told to stop; the same command without --stop resumes it")


def find_latest(client: JobSubmissionClient, job: Job) -> JobDetails | None:
    """The attempt that runs, of this job or another one of its series; else the latest of this job, if there is one."""
    # An earlier version gave no series.
    jobs = ((other, other.metadata or {}) for other in client.list_jobs())
    series = [other for other, facts in jobs if facts.get(_SERIES, facts.get(_NAME)) == job.series]
    running = [other for other in series if not other.status.is_terminal()]
    attempts = running or [other for other in series if other.metadata[_NAME] == job.name]
    return max(attempts, key=lambda other: int(other.metadata[_NUMBER]), default=None)


def _stands_for(latest: JobDetails, job: Job, *, again: bool, note: Callable[[str], None]) -> bool:
    """Whether an attempt is all that is needed."""
    same = latest.metadata[_DIGEST] == job.digest
    if not latest.status.is_terminal():
        if not same:
            raise ConfigError(
                f"--id must be that of no job with another config or other code that is running, got {job.name}: "
                "--stop ends it"
            )
        note(f"{latest.submission_id} is running already ({latest.status})")
        return True
    if latest.status == JobStatus.SUCCEEDED and same and not again:
        note(
            f"{latest.submission_id} has succeeded already, with the same config and code: there is nothing to "
            "submit. --again runs it once more, for instance where the pool has grown"
        )
        return True
    return False
