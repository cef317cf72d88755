"""A command that is run until it ends well, whatever strikes it meanwhile."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from tests.faults import commits
from tests.faults.commits import Fault, Plan, Struck
from tests.faults.nodes import Nodes, send

DRIVER, WORKER, EXIT, NODE = commits.DRIVER, "worker killed", commits.EXIT, "node lost"
SECOND, FROZEN, FULL = "second driver", "writer stopped and woken", commits.DISK_FULL
_RUN_SECONDS = 300
_ROOT = Path(__file__).parents[2]


class Attempts:
    """All runs of `winnow curate` on one config, or of `winnow nightly` where it has a section for that.

    Args:
        home: a folder of this machine for the config, the plan and what is said.
        config: of the curation.
        faults: what happens meanwhile.
        nodes: where it runs.
        nights: of each run that must end well, in order, what is otherwise than in the config: key -> value.

    Attributes:
        runs: how many there were.
        struck: how many faults of each kind there were.
    """

    def __init__(
        self,
        home: Path,
        config: Mapping[str, Any],
        faults: list[Fault],
        nodes: Nodes,
        nights: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        self.runs = 0
        self.struck: Counter[str] = Counter()
        self.plan = Plan.write(home, config["workspace"], faults)
        self._home = home
        self._nodes = nodes
        self._seen: set[str] = set()
        self._command = "nightly" if "nightly" in config else "curate"
        self._nights = [
            [word for key, value in night.items() for word in ("--set", f"{key}={value}")] for night in nights
        ]
        self._night = 0
        (home / "config.yaml").write_text(yaml.safe_dump(dict(config)))

    def finish(self) -> None:
        """Runs it again and again, each night until it ends well, and then wakes what was stopped."""
        self._night = 0
        while self._night < len(self._nights):
            before = len(self._seen)
            code, said = self._run()
            assert code == 0 or len(self._seen) > before, f"{self._home.name} ended by itself with {code}:\n{said}"
            self._night += code == 0
        self._nodes.wake()

    def _run(self) -> tuple[int, str]:
        """Runs it once, and strikes where it comes to a fault. Returns the exit code and what was said."""
        self.runs += 1
        with self._started() as (process, output):
            deadline = time.monotonic() + _RUN_SECONDS
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self._home.name} must end in {_RUN_SECONDS} s, said:\n{_said(output)}")
                self._look(process)
                time.sleep(0.05)
            self._look(process)
            return process.returncode, _said(output)

    @contextmanager
    def _started(self) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        changes = self._nights[self._night]
        environment = os.environ | {
            commits.FOLDER: str(self._home),
            commits.NIGHT: str(self._night),
            "RAY_ADDRESS": self._nodes.cluster.address,
        }
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.driver", self._command, str(self._home / "config.yaml"), *changes],
                cwd=_ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process, output
            finally:
                process.kill()
                process.wait()

    def _look(self, process: subprocess.Popen[bytes]) -> None:
        for fault, struck in self.plan.struck().items():
            if fault not in self._seen:
                self._seen.add(fault)
                self.struck[self._strike(fault, struck, process)] += 1

    def _strike(self, fault: str, struck: Struck, process: subprocess.Popen[bytes]) -> str:
        """Does what a fault is; returns its kind: where a driver comes to what is a worker's, it is the driver's."""
        kind = struck.kind
        if kind in (EXIT, FULL):  # the process has done it
            return kind
        if kind == SECOND:
            self._turn_away()
            self.plan.release(fault)
        elif kind == DRIVER or struck.pid == process.pid:
            process.kill()
            return DRIVER
        elif kind == WORKER or struck.node not in self._nodes.nodes:
            send(struck.pid, signal.SIGKILL)
            return WORKER
        elif kind == FROZEN:
            self._nodes.stop(struck.node)
            self.plan.release(fault)
        else:
            self._nodes.lose(struck.node)
        return kind

    def _turn_away(self) -> None:
        """A second driver must be told that it is one."""
        with self._started() as (second, output):
            code = second.wait(_RUN_SECONDS)
            said = _said(output)
        assert code == 2, said
        assert "must be used by one run at a time, got a second one" in said


def _said(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")
