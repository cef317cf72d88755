"""Ray, started on this machine or joined where it runs already."""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import AuthenticationError
from ray.util import placement_group, remove_placement_group

from operators.errors import ConfigError
from pipeline import logs
from pipeline.machine import own_cpus
from pipeline.placement import check_threads

_STDERR = 2

_REACH_SECONDS = 10

_GROW_SECONDS = 300
"""Nodes of a cloud take one to four minutes to come."""

TOKEN_HINT = (
    "set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in "
    "~/.ray/auth_token"
)
"""What lets a command into a cluster that asks for it."""

_log = logging.getLogger(__name__)

_OPTIONS = {
    # Ray ends an idle worker after a second when all CPUs are taken: each deal of a training would start a process.
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    # Above four times this number Ray warns of its own processes, and the actors of a few trainings are as many.
    "RAY_worker_maximum_startup_concurrency": "16",
}
"""Of a Ray that is started here, unless the environment has others."""


class Resources(BaseModel):
    """What a run may use.

    Where it joins a cluster that grows, `workers` and `gpus` say how far: nodes come for work that waits, and nobody
    but the config can tell how many there may be.

    Attributes:
        workers: CPU workers that each step is spread over. Default: the CPUs of the machine or cluster at the start.
        gpus: GPUs that encoders and k-means may use; 0 keeps to CPUs. Default: those that are there when a step begins.
        threads: threads of each worker of a numeric step.
        object_store_bytes: shared memory for data in flight, when the job starts Ray itself. Default: Ray's own choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(default=None, ge=1)
    gpus: int | None = Field(default=None, ge=0)
    threads: int = Field(default=1, ge=1)
    object_store_bytes: int | None = Field(default=None, ge=80_000_000)


@contextlib.contextmanager
def engine(resources: Resources, address: str | None = None) -> Iterator[int]:
    """Connects to Ray for the length of the context; yields the number of CPU workers.

    Joins the cluster at `address` or `RAY_ADDRESS`, or the one this process is connected to; else starts Ray here.

    Raises:
        ConfigError: no cluster can be reached at the address, it has no CPUs, or no node has as many as a worker uses.
    """
    joined = ray.is_initialized()
    with contextlib.ExitStack() as stack:
        stack.enter_context(core_unheard())
        if not joined:
            stack.callback(ray.shutdown)
            with _terminable_as_before():
                _connect(resources, address or os.environ.get("RAY_ADDRESS"))
        cpus = _grown(resources)
        check_threads(resources.threads)
        from ray.data import DataContext  # here, since a job that starts no Ray does without, and it takes a second

        # Progress is shown by the jobs themselves; Ray Data would draw its own bars and log that it does not.
        DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # A small pool has fewer chunks than there are encoders.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
        yield resources.workers or cpus


def _grown(resources: Resources) -> int:
    """The CPUs of a cluster, which is given the time to grow to those that the config asks for.

    Steps that need all of their workers at once take what is there: begun a minute early, a resumed k-means of hours
    would run on one node. What is waited for is reserved meanwhile, and is asked for no longer once this process ends.

    Raises:
        ConfigError: there are none.
    """
    wanted, cpus = resources.workers or 0, _num_cpus()
    if wanted > cpus:
        _log.warning("waiting for the cluster to have %d CPUs (resources.workers), it has %d", wanted, cpus)
        nodes = placement_group([{"CPU": resources.threads}] * -(-wanted // resources.threads))
        try:
            nodes.wait(_GROW_SECONDS)
        finally:
            remove_placement_group(nodes)
        cpus = _num_cpus()
        _log.warning("going on with %d CPUs", cpus)
    if not cpus:
        rule = "must be set to what it may grow to" if not wanted else "must be what its nodes can have"
        raise ConfigError(f"resources.workers {rule} for a cluster that has no CPUs, got {resources.workers}")
    return cpus


def _num_cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 0))


@contextlib.contextmanager
def core_unheard() -> Iterator[None]:
    """Keeps what Ray's core writes to this process's standard error out of the user's sight.

    It reports every actor pool of Ray Data as an error (ray-project/ray issue 53727), and no setting turns that off.
    Python's own `sys.stderr` goes on to where it went; a display that was opened before does not. `engine` does this,
    and so must who shows something before.
    """
    if sys.stderr is not sys.__stderr__:  # someone, such as a notebook, has taken care of it
        yield
        return
    with tempfile.TemporaryFile() as unseen, os.fdopen(os.dup(_STDERR), "w", buffering=1) as own:
        os.dup2(unseen.fileno(), _STDERR)
        sys.stderr = own
        try:
            yield
        finally:
            sys.stderr = sys.__stderr__
            os.dup2(own.fileno(), _STDERR)


@contextlib.contextmanager
def _terminable_as_before() -> Iterator[None]:
    """Keeps what SIGTERM does, where someone has seen to that: Ray would have it do something of its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str) -> None:
    """Raises OSError where nothing listens at a `host:port`: Ray itself would try for more than two minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()


def _connect(resources: Resources, address: str | None) -> None:
    if address:
        rule = f"address must be that of a running Ray cluster, got {address!r}"
        try:
            _check_reachable(address)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{rule}: {error}") from error
        try:
            # A job that was submitted has an environment, with all of this in it, which Ray lets nobody add to.
            variables = {} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else logs.environment()
            given = {"env_vars": variables} if variables else None
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, runtime_env=given)
        except (OSError, ValueError, AuthenticationError) as error:  # something listens: most likely a Ray with a token
            first = str(error).strip().partition("\n")[0].rstrip(".")
            raise ConfigError(f"{rule}: {first}. Where it has a token, {TOKEN_HINT}") from error
        return
    with _inherited():
        ray.init(
            address="local",  # without it, Ray joins whatever cluster was last started on this machine
            num_cpus=resources.workers or own_cpus(),
            object_store_memory=resources.object_store_bytes,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """Sets what the processes of a Ray started inside inherit.

    What is importable here is importable in its workers. The working folder comes last, so that a user's `queue.py`
    does not stand in for the standard library's.
    """
    paths = [*filter(None, sys.path), str(Path.cwd())]
    values = {name: os.environ.get(name, value) for name, value in _OPTIONS.items()}
    with logs.variables_set({**values, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}), _as_batch_work():
        yield


@contextlib.contextmanager
def _as_batch_work() -> Iterator[None]:
    """Has the processes started inside scheduled as batch work, where the system knows that and allows it.

    Each idle worker of Ray wakes up a hundred times a second, and would push aside a thread that computes, for which
    all other threads of its kind then wait.
    """
    if not hasattr(os, "sched_setscheduler") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    ordinary = os.sched_param(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_BATCH, ordinary)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, ordinary)
