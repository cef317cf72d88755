"""The lease on a workspace: of two drivers one goes on, the other stops with a clear error.

It is a claim (`pipeline.claim`) that a thread renews. On a local disk a lock of the system comes before it, which
answers at once.

A holder that was taken for dead, and wakes up, finds that another has the claim: at its next renewal, and before each
`Store.replace`, `Store.remove` and `Store.move` of the driver. Parts have the name of their content, so what it
published until then is harmless. Between that look and the one write that follows nothing guards it.
"""

import contextlib
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.claim import FOLDER, Claim, acquire, holder_of, in_use

if TYPE_CHECKING:
    from pipeline.storage import Store

_RELEASE_SECONDS = 5.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}

_held: dict[str, "Lease"] = {}
"""By URL, what this process holds."""


def check_held(url: str, name: str) -> None:
    """Called before a file that must be single is written or removed. Raises WorkspaceError where the lease is lost."""
    lease = _held.get(url)
    if lease is not None and not name.startswith(f"{FOLDER}/"):
        lease.claim.check()


def claim_on(url: str) -> "Claim | None":
    """What this process holds of a workspace, for its workers to check; None where it holds nothing."""
    lease = _held.get(url)
    return lease.claim if lease else None


@contextlib.contextmanager
def held(store: "Store", note: Callable[[str], None]) -> Iterator[None]:
    """Holds the lease on a workspace.

    Args:
        store: the workspace.
        note: is told what is waited for.

    Raises:
        WorkspaceError: another run has it, or has taken it over since.
    """
    if store.url in _held:
        raise in_use(store, _held[store.url].claim.holder)
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(_locked(store)) if store.is_local else False
        lease = _held[store.url] = Lease(acquire(store, note, alone=alone))
        stack.callback(_held.pop, store.url)
        stack.callback(lease.release)
        stack.enter_context(_interruptible())
        try:
            yield
        except KeyboardInterrupt:
            if lease.lost:
                lease.claim.check()
            raise


class Lease:
    """A claim that is renewed in a thread until it is released or lost.

    Attributes:
        claim: what is renewed.
        lost: whether another run was seen to have taken it.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.lost = False
        self._owner = threading.current_thread()
        self._active = True
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets go of it, in a few seconds even where the store does not answer: then others wait until it is over."""
        with self._turn:
            self._active = False
        self._stop.set()
        self._thread.join(_RELEASE_SECONDS)

    def _run(self) -> None:
        renewals = 0
        while not self._stop.wait(self.claim.holder.renew_seconds):
            # What fails is tried again at the next turn; whether that was too late shows in who has it then.
            with contextlib.suppress(Exception):
                if self.claim.is_taken():
                    self._interrupt()
                    return
                renewals += 1
                self.claim.renew(renewals)
        with contextlib.suppress(Exception):
            self.claim.release()

    def _interrupt(self) -> None:
        """Stops a run that has nothing more to do here, where it is: `held` then says why."""
        with self._turn:
            self.lost = True
            if self._active and self._owner is threading.main_thread() and self._owner.ident is not None:
                signal.pthread_kill(self._owner.ident, signal.SIGINT)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets a lost lease stop also a run that no Ctrl-C does: one that a script has put into the background."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt_if_lost)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt_if_lost(number: int, frame: object) -> None:
    if any(lease.lost for lease in _held.values()):
        raise KeyboardInterrupt


@contextlib.contextmanager
def _locked(store: "Store") -> Iterator[bool]:
    """The system's lock on a disk: gone with its process. Yields whether there are locks on this disk."""
    from pipeline.storage import explain_write_errors  # which imports this module

    with explain_write_errors(store.url):
        root = Path(store.path())
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise in_use(store, holder_of(store)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield False
            return
        yield True
    finally:
        os.close(lock)
