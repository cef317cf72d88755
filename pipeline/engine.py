"""Ray, started on this machine or joined where it runs already."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import ray
import ray.data
from pydantic import BaseModel, ConfigDict, Field

from operators.errors import ConfigError


class Resources(BaseModel):
    """What a run may use.

    Attributes:
        workers: CPU workers that each step is spread over. Default: the CPUs of the machine or cluster.
        threads: threads of each worker of a numeric step.
        object_store_bytes: shared memory for data in flight, when the job starts Ray itself. Default: Ray's own choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(default=None, ge=1)
    threads: int = Field(default=1, ge=1)
    object_store_bytes: int | None = Field(default=None, ge=80_000_000)


@contextlib.contextmanager
def engine(resources: Resources, address: str | None = None) -> Iterator[int]:
    """Connects to Ray for the length of the context; yields the number of CPU workers.

    Joins the cluster at `address` or `RAY_ADDRESS`, or the one this process is connected to; else starts Ray here.
    """
    joined = ray.is_initialized()
    if not joined:
        _connect(resources, address or os.environ.get("RAY_ADDRESS"))
    try:
        # Progress is shown by the jobs themselves; Ray Data would draw its own bars and log that it does not.
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        yield min(resources.workers or cpus, cpus)
    finally:
        if not joined:
            ray.shutdown()


def _connect(resources: Resources, address: str | None) -> None:
    if address:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"address must be that of a running Ray cluster, got {address!r}: {error}") from error
        return
    # Workers inherit the environment of the process that starts Ray: what is importable here is importable there.
    paths = [str(Path.cwd()), *filter(None, sys.path)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # Ray's core logs every actor pool of Ray Data as an error: its arguments lie in the object store, as they should.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(
        num_cpus=resources.workers or os.cpu_count(),
        object_store_memory=resources.object_store_bytes,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
