"""Where faults strike: at the commits of a driver and its workers, wherever a file becomes visible.

A commit takes a number: how many commits of the same step, over all processes and attempts, came before it. A plan says
at which numbers what goes wrong, or what goes wrong before every file, each once a night (`EVERY`). `install` wraps the
writes of `Store`, in the driver (`tests.faults.driver`) and, by Ray's setup hook, in each of its workers. The
harness (`tests.faults.schedules`) strikes: a process that comes to a fault says so in a file, and waits there for its
end, or for leave to go on.
"""

import errno
import fcntl
import functools
import hashlib
import inspect
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.storage import Store, explain_write_errors

FOLDER = "WINNOW_FAULTS"
"""The environment's name for the folder of a plan and of what came of it."""
NIGHT = "WINNOW_FAULTS_NIGHT"
"""The environment's name for how many runs have ended well before: nights, of a nightly curation."""
EVERY = "every file"
"""The step of a fault that strikes before each file becomes visible, once a night, whatever its commit's number."""
OUTSIDE = "outside the workspace"
DRIVER, DISK_FULL, EXIT = "driver killed", "disk full", "process exits"
_POLL_SECONDS = 0.05
_OF_BYTES = ("publish", "replace")
_UNCOUNTED = (".", "status.json")
"""Probes, leases, and what is written by the clock."""

_ATTEMPT = re.compile("[0-9a-f]{32}")
"""In a path, the name of an attempt."""

_here = threading.local()


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        step: whose commit: the first folder of its path, or the file in the root; `OUTSIDE` for exports.
        commit: its number.
        after: when the file is visible already, not before.
        kind: what happens.
    """

    step: str
    commit: int
    after: bool
    kind: str


@dataclass(frozen=True)
class Struck:
    """What a process says that has come to a fault: who it is, on which node (empty for a driver), what must happen."""

    pid: int
    node: str
    kind: str


class Plan:
    """The faults of a schedule in a folder of their own, which all processes see.

    Args:
        folder: of the plan.

    Attributes:
        workspace: URL of what is struck.
        faults: what goes wrong, by number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = json.loads((folder / "plan.json").read_text())
        self.workspace: str = found["workspace"]
        self.faults = [Fault(**fault) for fault in found["faults"]]

    @staticmethod
    def write(folder: Path, workspace: str, faults: list[Fault]) -> "Plan":
        """Lays a plan down, before any process starts."""
        for name in ("commits", "places"):
            (folder / name).mkdir(parents=True)
        plan = {"workspace": workspace, "faults": [asdict(fault) for fault in faults]}
        (folder / "plan.json").write_text(json.dumps(plan))
        return Plan(folder)

    def commits(self) -> dict[str, int]:
        """How many commits there were, by step."""
        return {path.name: path.stat().st_size for path in sorted((self.folder / "commits").iterdir())}

    def count(self, step: str) -> int:
        """Takes the next number of a step."""
        with (self.folder / "commits" / step).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            number = os.fstat(file.fileno()).st_size
            file.write(b".")
            file.flush()
            return number

    def is_first(self, name: str) -> bool:
        """Whether nobody has come to the commit of this file this night, in any attempt."""
        place = hashlib.sha256(f"{os.environ[NIGHT]} {_ATTEMPT.sub('attempt', name)}".encode()).hexdigest()
        try:
            (self.folder / "places" / place).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def places(self) -> int:
        """How many files there were commits of, each counted once a night."""
        return sum(1 for _ in (self.folder / "places").iterdir())

    def struck(self) -> dict[str, Struck]:
        """Who came to a fault, by its number; to one of `EVERY`, by the step and number of the commit."""
        return {path.stem: Struck(**json.loads(path.read_text())) for path in self.folder.glob("*.struck")}

    def release(self, fault: str) -> None:
        """Lets the process that waits at a fault go on."""
        (self.folder / f"{fault}.go").touch()

    def come_to(self, fault: str, kind: str, url: str) -> None:
        """Called by the process that has come to a fault."""
        partial = self.folder / f"{fault}.struck~"
        partial.write_text(json.dumps(asdict(Struck(os.getpid(), _node(), kind))))
        partial.rename(self.folder / f"{fault}.struck")
        if kind == EXIT:
            os._exit(1)
        if kind == DISK_FULL:
            with explain_write_errors(url):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while not (self.folder / f"{fault}.go").exists():
            time.sleep(_POLL_SECONDS)


def install() -> None:
    """Wraps the writes of this process."""
    plan = Plan(Path(os.environ[FOLDER]))
    for name in ("publish_file", "publish", "replace_file", "replace"):
        method = getattr(Store, name)
        signature = inspect.signature(method)

        def locate(*values: Any, signature: inspect.Signature = signature, **named: Any) -> tuple[Store, str]:
            bound = signature.bind(*values, **named).arguments
            return bound["self"], bound["name"]

        setattr(Store, name, _counted(method, locate, plan))


def _counted(write: Callable[..., Any], locate: Callable[..., tuple[Store, str]], plan: Plan) -> Callable[..., Any]:
    @functools.wraps(write)
    def counted(*values: Any, **named: Any) -> Any:
        store, name = locate(*values, **named)
        url = store.url
        if getattr(_here, "writing", False) or name.startswith(_UNCOUNTED):  # one write inside another
            return write(*values, **named)
        _here.writing = True
        try:
            step = name.partition("/")[0] if url.rstrip("/") == plan.workspace.rstrip("/") else OUTSIDE
            commit = plan.count(step)
            if plan.is_first(f"{url}/{name}"):
                for fault in plan.faults:
                    if fault.step == EVERY:
                        plan.come_to(f"{step}-{commit}", fault.kind, url)
            found = [(i, fault) for i, fault in enumerate(plan.faults) if (fault.step, fault.commit) == (step, commit)]
            for number, fault in found:
                if not fault.after:
                    if write.__name__ in _OF_BYTES and fault.kind != DISK_FULL:
                        _leave_scratch(store, name)
                    plan.come_to(str(number), fault.kind, url)
            result = write(*values, **named)
            for number, fault in found:
                if fault.after:
                    plan.come_to(str(number), fault.kind, url)
            return result
        finally:
            _here.writing = False

    return counted


def _leave_scratch(store: Store, name: str) -> None:
    """What a process leaves that is killed while it writes: of a write of bytes the scratch file is not there yet."""
    if store.is_local:
        folder = Path(store.path(name)).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".attempt-{uuid.uuid4().hex}").touch()


def _node() -> str:
    """Where this worker runs; empty for a driver."""
    import ray

    context = ray.get_runtime_context()
    return str(context.get_node_id()) if context.worker.mode == ray.WORKER_MODE else ""
