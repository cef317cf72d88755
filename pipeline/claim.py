"""Claims on a workspace, one after the other; `pipeline.lease` holds the last of them for a driver.

    .lease/<generation>.json    who holds it; created by an operation that fails if the name exists, removed when done
    .lease/<generation>.beat    how often its holder, who alone writes it, has renewed it

The highest generation counts. Who comes later takes the next one once the last is gone, once its process is known to
be, or once `MISSED_RENEWALS` renewals have failed to show: the count is watched, by the newcomer's own clock, and no
times of two machines are compared. Two who try at once want the same name, so one of them fails. This holds on disks,
shared folders and S3 alike.
"""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.errors import WorkspaceError
from pipeline.machine import Process, this_process

if TYPE_CHECKING:
    from pipeline.storage import Store

FOLDER = ".lease"
RENEW_SECONDS = float(os.environ.get("WINNOW_LEASE_RENEW_SECONDS", "10"))
MISSED_RENEWALS = 6


@dataclass(frozen=True)
class Holder:
    """Who took a lease.

    Attributes:
        attempt: no two are the same.
        process: where it runs.
        since: when it was taken by the clock there; for people only.
        renew_seconds: how often it is renewed.
        missed_renewals: after how many that did not come others may take it.
    """

    attempt: str
    process: Process
    since: str
    renew_seconds: float
    missed_renewals: int

    @property
    def name(self) -> str:
        """The holder, for people."""
        return f"{self.process.host} (process {self.process.pid})"


@dataclass(frozen=True)
class Claim:
    """A generation that is ours, as long as no other has followed; every process may ask."""

    store: "Store"
    generation: int
    holder: Holder

    def check(self) -> None:
        """Raises WorkspaceError where another run has taken the workspace over."""
        if not self.is_taken():
            return
        successor = holder_of(self.store)
        who = f"{successor.name} took it over at {successor.since}" if successor else "another one took it over"
        raise WorkspaceError(
            f"{self.store.url} must be used by one run at a time, got replaced: this run did not renew its lease for "
            f"{self.holder.renew_seconds * self.holder.missed_renewals:g} seconds, and {who}. "
            "What it has published stays and is used; leave the rest to the other run"
        )

    def is_taken(self) -> bool:
        """Whether another run has taken the workspace over."""
        return self.store.exists(_name(self.generation + 1)) or _read_holder(self.store, self.generation) != self.holder

    def renew(self, count: int) -> None:
        """Says how often it has been renewed."""
        from pipeline.storage import to_json  # which imports this module

        self.store.replace(_beat(self.generation), to_json({"renewals": count}))

    def release(self) -> None:
        """Removes it, and what those before it left; nothing where another run has taken it."""
        if self.is_taken():
            return
        mine = Path(_name(self.generation)).stem
        for name in sorted(self.store.find(FOLDER), reverse=True):  # a holder's name after its count
            if Path(name).stem < mine:
                self.store.remove(name)
        self.store.remove(_beat(self.generation))
        self.store.remove(_name(self.generation))


def acquire(store: "Store", note: Callable[[str], None], *, alone: bool) -> "Claim":
    """Takes the next generation, when the last one is over.

    Args:
        store: the workspace.
        note: is told what is waited for.
        alone: whether no other process of this machine can have it.

    Raises:
        WorkspaceError: another run has it, or the store cannot tell two writers apart.
    """
    while True:
        last = latest(store)
        before = _read_holder(store, last) if last else None
        if last and not (before and _is_over(store, last, before, note, alone=alone)):
            continue
        mine = Holder(
            attempt=uuid.uuid4().hex,
            process=this_process(),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            renew_seconds=RENEW_SECONDS,
            missed_renewals=MISSED_RENEWALS,
        )
        if not store.publish_json(_name(last + 1), asdict(mine)):
            continue
        if last and _read_holder(store, last) != before:  # it was alive and let go: who came since counts from 1 again
            store.remove(_name(last + 1))
            continue
        claim = Claim(store, last + 1, mine)
        if not store.is_local and store.publish(_name(last + 1), b"another"):
            store.remove(FOLDER)
            raise WorkspaceError(
                f"{store.url} must lie on a store that honours conditional puts (If-None-Match), got one that "
                "overwrites: two writers could not be told apart"
            )
        if not claim.is_taken():
            return claim


def latest(store: "Store") -> int:
    """The highest generation; 0 before the first. A listing may be old, so the names that follow are asked for."""
    names = [name for name in store.find(FOLDER) if name.endswith(".json")]
    last = max((int(Path(name).stem) for name in names), default=0)
    while store.exists(_name(last + 1)):
        last += 1
    return last


def holder_of(store: "Store") -> Holder | None:
    """Who has taken a workspace last and not let it go, be it dead or alive; None where it is free."""
    return _read_holder(store, latest(store))


def seconds_since_renewal(store: "Store") -> float | None:
    """How old the last sign of the last holder is; None where there is none.

    For people only: it compares the clock of the store with the one here.
    """
    last = latest(store)
    for name in (_beat(last), _name(last)):
        try:
            return max(0.0, time.time() - store.modified(name))
        except FileNotFoundError:
            continue
    return None


def in_use(store: "Store", holder: Holder | None) -> WorkspaceError:
    """What the loser of two is told."""
    who = f", while {holder.name} has had it since {holder.since}" if holder else ""
    return WorkspaceError(
        f"{store.url} must be used by one run at a time, got a second one{who}: "
        "wait for the first or stop it, or give this one a workspace of its own"
    )


def _is_over(store: "Store", generation: int, holder: Holder, note: Callable[[str], None], *, alone: bool) -> bool:
    """Whether the next generation may be taken; False where this one was removed, so that all must be seen anew.

    Raises:
        WorkspaceError: it is renewed.
    """
    before = _read(store, _beat(generation))
    here = this_process()
    # Of this process itself it is not held any more, or `held` would have said so.
    if holder.process == here or holder.process.is_gone() or (alone and holder.process.boot == here.boot):
        return True
    patience = holder.renew_seconds * holder.missed_renewals
    note(f"waiting up to {patience:g} s to see whether {holder.name} still works in {store.url}")
    since = time.monotonic()
    while time.monotonic() - since < patience:
        time.sleep(min(holder.renew_seconds / 4, patience / 4))
        if _read_holder(store, generation) != holder:
            return False
        if holder.process.is_gone():
            return True
        if _read(store, _beat(generation)) != before:
            raise in_use(store, holder)
    return True


def _read_holder(store: "Store", generation: int) -> Holder | None:
    record = _read(store, _name(generation))
    return Holder(**record | {"process": Process(**record["process"])}) if record else None


def _read(store: "Store", name: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = store.read_json(name)
    except FileNotFoundError:
        return None
    return record


def _name(generation: int) -> str:
    return f"{FOLDER}/{generation:09d}.json"


def _beat(generation: int) -> str:
    return f"{FOLDER}/{generation:09d}.beat"
