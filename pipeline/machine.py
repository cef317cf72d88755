"""This machine: what a process may use of it, and which process it is, so that another can tell whether it runs."""

import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process.

    Attributes:
        host: the machine's name, for people: two containers may share one.
        pid: its number there.
        boot: one start of one machine; empty where that cannot be known.
        space: the set of processes that `pid` counts in: two containers of a machine have two.
        start: what tells it from a later process of the same number.
    """

    host: str
    pid: int
    boot: str
    space: str
    start: str

    def is_gone(self) -> bool:
        """Whether it is known to have ended: on another machine, or in another container, that is never known."""
        here = this_process()
        near = bool(self.boot) and (self.boot, self.space) == (here.boot, here.space)
        return near and _start_of(self.pid) != self.start


def this_process() -> Process:
    """The process that asks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        boot = space = ""
    return Process(socket.gethostname(), os.getpid(), boot, space, _start_of(os.getpid()))


def _start_of(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where there is none any more."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in ("Z", "X") else fields[18]


def own_cpus() -> int:
    """The CPUs that this process may use: fewer than there are where it is held to some, or to a share of them."""
    held_to = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(held_to, _quota())))


def _quota(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """The CPUs' worth of time that the control group of a container allows; infinity where there is no such limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2, version 1
        try:
            quota, period = " ".join((folder / name).read_text() for name in files).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf
