import contextlib
import errno
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from operators.errors import WorkspaceError
from pipeline import claim, lease
from pipeline.claim import FOLDER, Holder, holder_of
from pipeline.lease import claim_on
from pipeline.machine import Process, this_process
from pipeline.storage import Store

ELSEWHERE = Process("far-away", 7, "another boot", "another space", "1")


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "work"))


@pytest.fixture
def memory():
    """Stands for an object store: exclusive creation, no locks."""
    store = Store("memory://winnow-lease")
    yield store
    store.remove("")


@pytest.fixture(params=["disk without locks", "object store"])
def shared(request, store, memory, monkeypatch):
    """Where only the lease tells two runs apart."""
    monkeypatch.setattr(lease.fcntl, "flock", no_locks)
    return store if request.param == "disk without locks" else memory


@pytest.fixture
def at_once(monkeypatch):
    """Waiting is a mistake."""

    def refuse(seconds):
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(claim.time, "sleep", refuse)


def no_locks(*args):
    raise OSError(errno.ENOSYS, "no locks here")


def take(
    store: Store, generation: int, process: Process = ELSEWHERE, renew_seconds: float = 0.05, missed: int = 3
) -> Holder:
    """Takes a lease as another run would."""
    holder = Holder(f"attempt {generation}", process, "2025-06-01 12:00:00 UTC", renew_seconds, missed)
    assert store.publish_json(f"{FOLDER}/{generation:09d}.json", asdict(holder))
    return holder


def files(store: Store) -> list[str]:
    return [name.removeprefix(f"{FOLDER}/") for name in store.find(FOLDER)]


def test_two_at_once(store, memory, at_once):
    for place in (store, memory):
        with place.locked():
            before = files(place)
            with pytest.raises(WorkspaceError) as caught, place.locked():
                pass
            here = this_process()
            assert str(caught.value).startswith(
                f"{place.url} must be used by one run at a time, got a second one, "
                f"while {here.host} (process {here.pid}) has had it since 2"
            )
            assert str(caught.value).endswith("wait for the first or stop it, or give this one a workspace of its own")
            assert files(place) == before
        assert claim_on(place.url) is None
        assert files(place) == []
        with place.locked():
            pass


def test_two_processes_with_locks(store):
    with multiprocessing.get_context("spawn").Pool(1) as pool, store.locked():
        message = pool.apply(try_to_lock, (store,))
    assert f"(process {os.getpid()}) has had it since" in message


def try_to_lock(store: Store) -> str:
    with pytest.raises(WorkspaceError) as caught, store.locked():
        pass
    return str(caught.value)


def test_the_last_one_tidies_up(store, at_once):
    for generation in (1, 2):
        take(store, generation, replace(this_process(), start="1"))
        store.replace(f"{FOLDER}/{generation:09d}.beat", b"{}")
    with store.locked():
        assert claim_on(store.url).generation == 3
    assert files(store) == []


@pytest.mark.parametrize("locks", [True, False])
def test_a_killed_holder_of_this_machine_is_replaced_at_once(store, at_once, monkeypatch, locks):
    process = multiprocessing.get_context("spawn").Process(target=die_with_the_lease, args=(store,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert files(store) == ["000000001.json"]
    if not locks:
        monkeypatch.setattr(lease.fcntl, "flock", no_locks)
    with store.locked():
        assert claim_on(store.url).generation == 2


def die_with_the_lease(store: Store) -> None:
    with store.locked():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_tells_that_another_container_of_this_machine_is_gone(store, at_once):
    take(store, 1, replace(this_process(), host="a-container", space="its own"))
    with store.locked():
        assert claim_on(store.url).generation == 2


def test_a_holder_elsewhere_that_is_silent_is_replaced(shared):
    take(shared, 1)
    shared.replace(f"{FOLDER}/000000001.beat", b'{"renewals": 4}')
    notes: list[str] = []
    with shared.locked(notes.append):
        assert claim_on(shared.url).generation == 2
    assert notes == [f"waiting up to 0.15 s to see whether far-away (process 7) still works in {shared.url}"]


def test_a_holder_elsewhere_that_renews_is_not(shared):
    take(shared, 1, missed=10_000)
    done = threading.Event()

    def renew():
        count = 0
        while not done.wait(0.02):
            count += 1
            shared.replace(f"{FOLDER}/000000001.beat", b'{"renewals": %d}' % count)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(WorkspaceError, match=r"far-away \(process 7\) has had it since 2025-06-01 12:00:00 UTC"):
            shared.locked().__enter__()
    finally:
        done.set()
        thread.join()


def test_a_holder_that_releases_while_it_is_watched(shared):
    take(shared, 1, renew_seconds=60)
    threading.Timer(0.1, shared.remove, (f"{FOLDER}/000000001.json",)).start()
    lease_sleep = time.sleep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim.time, "sleep", lambda seconds: lease_sleep(0.02))
        with shared.locked():
            assert claim_on(shared.url).generation == 1


def test_a_holder_that_wakes_up_and_releases_just_before_it_is_replaced(shared, monkeypatch):
    """Who comes then finds nothing, and counts from 1 again: both would go on."""
    take(shared, 2)
    third = Process("third", 7, "boot", "space", "1")
    publish = Store.publish_json

    def late(store, name, value):
        monkeypatch.setattr(Store, "publish_json", publish)
        shared.remove(f"{FOLDER}/000000002.json")
        take(shared, 1, third, renew_seconds=1)
        threading.Timer(0.3, shared.replace, (f"{FOLDER}/000000001.beat", b"{}")).start()
        return store.publish_json(name, value)

    monkeypatch.setattr(Store, "publish_json", late)
    with pytest.raises(WorkspaceError, match="got a second one, while third"), shared.locked():
        pass
    assert files(shared) == ["000000001.beat", "000000001.json"]


def test_a_lease_is_renewed(shared, monkeypatch):
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.01)
    beats = set()
    with shared.locked():
        while len(beats) < 3:
            with contextlib.suppress(FileNotFoundError):
                beats.add(shared.read(f"{FOLDER}/000000001.beat"))
    assert files(shared) == []


def test_it_is_known_who_has_it(shared):
    assert holder_of(shared) is None
    take(shared, 1)
    second = take(shared, 2)
    assert holder_of(shared) == second


def test_who_was_replaced_finds_out_before_it_replaces_or_removes_anything(shared):
    shared.replace("summary.json", b"before")
    with shared.locked():
        shared.replace("summary.json", b"mine")
        mine = claim_on(shared.url)
        take(shared, 2)
        for call in (lambda: shared.replace("summary.json", b"late"), lambda: shared.remove("ledger"), mine.check):
            with pytest.raises(WorkspaceError) as caught:
                call()
        assert str(caught.value) == (
            f"{shared.url} must be used by one run at a time, got replaced: this run did not renew its lease for "
            "60 seconds, and far-away (process 7) took it over at 2025-06-01 12:00:00 UTC. What it has published "
            "stays and is used; leave the rest to the other run"
        )
        assert shared.publish("part", b"harmless"), "parts are put if absent"
    assert shared.read("summary.json") == b"mine"


def test_who_was_replaced_by_others_who_are_done_finds_out_too(shared):
    with shared.locked():
        shared.remove(FOLDER)
        with pytest.raises(WorkspaceError, match="and another one took it over"):
            shared.replace("summary.json", b"late")
        take(shared, 1)
        with pytest.raises(WorkspaceError, match="far-away"):
            shared.replace("summary.json", b"late")
    assert files(shared) == ["000000001.json"], "what is another's stays"


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_who_was_replaced_is_stopped_where_it_is(shared, monkeypatch, handler):
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.05)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(WorkspaceError, match=r"got replaced: .* far-away \(process 7\) took it over"):
            work_on(shared)
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def work_on(store: Store) -> None:
    with store.locked():
        take(store, 2)
        time.sleep(60)


def test_an_interrupt_of_the_user_stays_one(shared):
    with pytest.raises(KeyboardInterrupt), shared.locked():
        raise KeyboardInterrupt
    with shared.locked():
        pass


def test_a_listing_that_is_old_is_not_believed(shared, monkeypatch):
    take(shared, 1)
    take(shared, 2)
    monkeypatch.setattr(Store, "find", lambda self, folder: {})
    assert claim.latest(shared) == 2


def test_a_store_that_overwrites_is_refused(memory, monkeypatch):
    fs = memory.filesystem
    pipe = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, data, mode="overwrite": pipe(path, data))
    with pytest.raises(WorkspaceError, match="must lie on a store that honours conditional puts"):
        memory.locked().__enter__()


def test_a_store_that_is_gone_does_not_hide_why_a_run_failed(shared, monkeypatch):
    def refuse(self, name, data):
        raise OSError(errno.ENOSPC, "full")

    stack = contextlib.ExitStack()
    stack.enter_context(shared.locked())
    monkeypatch.setattr(Store, "replace", refuse)
    with pytest.raises(ZeroDivisionError), stack:
        raise ZeroDivisionError


def test_of_many_processes_one_holds_it_at_a_time(store):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        held = sum(pool.starmap(hold_briefly, [(store, number) for number in range(12)]))
    assert held >= 2
    assert files(store) == []
    assert sorted(path.name for path in Path(store.path()).glob("turn-*")) == sorted(
        f"turn-{number}" for number in range(1, held + 1)
    )


def hold_briefly(store: Store, number: int) -> bool:
    lease.fcntl.flock = no_locks
    claim.RENEW_SECONDS, claim.MISSED_RENEWALS = 0.2, 10_000  # however slow the machine, nobody is taken for dead
    try:
        with store.locked():
            turn = len(list(Path(store.path()).glob("turn-*"))) + 1
            Path(store.path(f"turn-{turn}")).touch(exist_ok=False)
    except WorkspaceError:
        return False
    return True


def test_processes(monkeypatch):
    here = this_process()
    assert (here.pid, here.boot != "") == (os.getpid(), True)
    assert not here.is_gone()
    assert replace(here, start="1").is_gone()
    assert replace(here, pid=2**22 + 1).is_gone()
    for elsewhere in (replace(here, boot="x", start="1"), replace(here, space="x", start="1")):
        assert not elsewhere.is_gone()
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    mine = replace(here, pid=child.pid, start="no such time")
    child.join()
    assert mine.is_gone()
