"""`status.json` and who reads it, without Ray: jobs that run, end, fail, are stopped, killed and replaced."""

import json
import threading
import time
from dataclasses import replace

import pytest
import s3fs

from jobs.main import main
from operators.errors import InputError, LimitExceeded, WorkspaceError
from pipeline import claim, metrics
from pipeline.contents import nested
from pipeline.progress import Progress
from pipeline.status import read, write
from pipeline.status.read import read_status
from pipeline.status.write import STATUS, working
from pipeline.storage import Store
from pipeline.verify.workspace import verify


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "w"))


def seen(store, **expected):
    """The status once it says so; it is written by a thread."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if store.exists(STATUS):
            status = read_status(store)
            if all(getattr(status, name) == value for name, value in expected.items()):
                return status
        time.sleep(0.01)
    raise AssertionError(f"{store.read(STATUS) if store.exists(STATUS) else 'no status'} is not {expected}")


def test_a_job_that_runs_and_is_done(store, capsys):
    with working(store, "curate", Progress()) as progress:
        with progress.step("samples", total=200) as step:
            step.advance(200, rejected=3)
        with progress.step("fit", total=8, unit="iterations") as step:
            step.advance(2)
            step.remarks = ("loss 0.3",)
            status = seen(store, current="fit")
            assert (status.state, status.exit_code, status.job) == ("running", 0, "curate")
            first, second = status.steps
            assert (first.name, first.state, first.rows, first.total, first.counts) == (
                "samples",
                "done",
                200,
                200,
                {"rejected": 3},
            )
            assert (second.state, second.unit) == ("running", "iterations")
            assert status.renewed_seconds is not None
            assert status.held_by is None
            assert main(["status", store.url]) == 0
            shown = capsys.readouterr().out
            assert "curate is running at step fit: on " in shown
            assert "last sign " in shown
            assert "3 rejected" in shown
    status = read_status(store)
    assert (status.state, status.exit_code) == ("done", 0)
    assert [(step.state, step.rows, step.remarks) for step in status.steps] == [
        ("done", 200, ()),
        ("done", 2, ("loss 0.3",)),
    ]
    assert main(["status", store.url]) == 0
    assert "curate is done: at 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InputError("the pool must hold shards, got none"), "InputError", 2),
        (LimitExceeded("too many rejects"), "LimitExceeded", 3),
        (ValueError("boom"), "ValueError", 1),
    ],
)
def test_a_job_that_fails(store, capsys, error, kind, code):
    with pytest.raises(type(error)), working(store, "train", Progress()) as progress, progress.step("train"):
        raise error
    status = read_status(store)
    assert (status.state, status.exit_code) == ("failed", 4)
    assert status.error == {"type": kind, "message": str(error), "exit_code": code}
    assert [step.state for step in status.steps] == ["failed"]
    assert main(["status", store.url]) == 4
    shown = capsys.readouterr().out
    assert f"{kind}: {error} (exit code {code})" in shown
    assert "the same `winnow train` command goes on from there" in shown


def test_a_job_that_is_stopped(store):
    with (
        pytest.raises(KeyboardInterrupt),
        working(store, "evaluate", Progress()) as progress,
        progress.step("retrieval", total=10),
    ):
        raise KeyboardInterrupt
    status = read_status(store)
    assert (status.state, status.exit_code, status.current) == ("interrupted", 5, "retrieval")
    assert [step.state for step in status.steps] == ["interrupted"]


def write_status(store, **changes):
    """A status as a job left it that said nothing of its end, and its lease."""
    with working(store, "curate", Progress()) as progress, progress.step("prune", total=10) as step:
        step.advance(4)
        seen(store, current="prune")
        left = [name for name in store.find(".lease") if name.endswith(".json")]
        lease, record = store.read_json(left[0]), store.read_json(STATUS)
    lease["process"] |= changes
    store.replace(STATUS, json.dumps(record).encode())
    store.replace(left[0], json.dumps(lease).encode())
    return left[0]


def test_a_job_that_was_killed_here(store, capsys):
    write_status(store, pid=2**22 + 1)
    assert (read_status(store).state, read_status(store).current) == ("interrupted", "prune")
    assert main(["status", store.url]) == 5
    shown = capsys.readouterr().out
    assert "curate was interrupted at step prune: last seen at 2" in shown
    assert "the same `winnow curate` command goes on from there" in shown
    assert main(["status", store.url, "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["state"] == "interrupted"


def test_the_next_job_says_whom_it_goes_on_after(store):
    notes = []
    progress = Progress()
    progress.note = lambda text, **fields: notes.append(text)
    write_status(store, pid=2**22 + 1)
    killed = store.read_json(STATUS)["run"]
    with working(store, "train", progress):
        pass
    assert notes == []
    write_status(store, pid=2**22 + 1)
    with working(store, "curate", progress):
        pass
    assert notes == [f"going on after run {killed}, which did not end: what is stored for the same settings is used"]
    with working(store, "curate", progress):
        pass
    for unreadable in (b"[]", b"{", b"{}"):
        store.replace(STATUS, unreadable)
        with working(store, "curate", progress):
            pass
    assert len(notes) == 1


def test_a_job_of_another_machine_lives_as_long_as_it_renews(store, monkeypatch):
    write_status(store, boot="another", pid=2**22 + 1)
    assert read_status(store).state == "running"
    later = time.time() + claim.RENEW_SECONDS * claim.MISSED_RENEWALS + 1
    monkeypatch.setattr(claim.time, "time", lambda: later)
    assert read_status(store).state == "interrupted"


def test_a_job_whose_lease_is_gone_or_anothers(store):
    name = write_status(store)
    store.remove(name)
    assert read_status(store).state == "interrupted"
    with working(store, "curate", Progress()):
        seen(store, state="running")
    assert read_status(store).state == "done"
    with store.locked():  # as an export has it
        status = read_status(store)
    assert status.state == "done"
    assert f"(process {status.pid}), since 2" in status.held_by
    assert status.sentences[-1].startswith("in use at present by ")


def test_a_status_that_cannot_be_written_fails_nothing(store, monkeypatch):
    asked = threading.Event()

    def replace_(self, name, data):
        asked.set()
        raise OSError("no")

    monkeypatch.setattr(Store, "replace", replace_)
    with working(store, "curate", Progress()) as progress, progress.step("samples") as step:
        step.advance(1)
        assert asked.wait(60)
    assert not store.exists(STATUS)


def test_a_store_that_hangs_holds_up_nobody_for_long(store, monkeypatch):
    go, hung = threading.Event(), threading.Event()

    def replace_(self, name, data):
        hung.set()
        assert go.wait(60)

    monkeypatch.setattr(Store, "replace", replace_)
    monkeypatch.setattr(write, "_LAST_WRITE_SECONDS", 0.05)
    with working(store, "curate", Progress()):
        assert hung.wait(60)
    # It is left while the store still hangs, and the workspace is free.
    assert not go.is_set()
    with store.locked():
        go.set()


def test_it_goes_on_being_written_between_the_borders_of_steps(store, monkeypatch):
    monkeypatch.setattr(write, "_INTERVAL_SECONDS", 0.05)
    with working(store, "curate", Progress()) as progress, progress.step("samples", total=9) as step:
        seen(store, current="samples")
        step.advance(5)
        deadline = time.monotonic() + 60
        while read_status(store).steps[0].rows < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_job_within_a_job_is_in_both(store, monkeypatch):
    told = []
    monkeypatch.setattr(metrics, "show", lambda metric, value, **labels: told.append((labels["workspace"], value)))
    inner = replace(store, url=f"{store.url}/training/raw/0")
    with (
        working(store, "compare", Progress()) as outer,
        working(inner, "compare", outer) as progress,
        progress.step("raw 0: train", 16, "samples") as step,
    ):
        step.advance(16)
    for each in (store, inner):
        assert [(step.name, step.rows) for step in read_status(each).steps] == [("raw 0: train", 16)]
    assert nested(store) == [inner]
    assert told == [(store.url, 1), (store.url, 0)]


def test_on_s3(s3_server, capsys):
    storage = {"endpoint_url": s3_server, "key": "k", "secret": "s"}
    s3fs.S3FileSystem(**storage).mkdir("watched")
    store = Store("s3://watched/w", storage)
    with working(store, "train", Progress()) as progress, progress.step("train", 64, "samples"):
        status = seen(store, current="train")
        assert 0 <= status.renewed_seconds < 60
    options = [f"--storage={name}={value}" for name, value in storage.items()]
    assert main(["status", store.url, *options]) == 0
    assert "train is done: at 2" in capsys.readouterr().out


def test_where_there_is_none(store, capsys):
    rule = f"{store.url} must be a workspace that a job has begun to work in, got "
    with pytest.raises(WorkspaceError, match=r"got one without status\.json$"):
        read_status(store)
    with store.locked(), pytest.raises(WorkspaceError, match=r"status\.json, which .* has had since 2"):
        read_status(store)
    store.replace(STATUS, b'{"format_version": 99}')
    assert main(["status", store.url]) == 2
    assert capsys.readouterr().err == f"winnow: {rule}a status.json of another version, 99\n"


def test_watching_ends_with_the_job(store, capsys):
    with working(store, "curate", Progress()) as progress, progress.step("samples", total=9):
        seen(store, current="samples")
        watch = threading.Thread(target=main, args=(["status", store.url, "--watch", "0.01", "--json"],))
        watch.start()
        time.sleep(0.1)
    watch.join(60)
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states[0] == "running"
    assert states[-1] == "done"
    assert set(states) == {"running", "done"}
    assert main(["status", store.url, "--watch", "0"]) == 2


@pytest.mark.ray
def test_it_is_no_artifact(store, ray_here):
    with working(store, "curate", Progress()):
        pass
    found = verify(store, workers=1, progress=Progress())
    assert (found.rows, found.damage) == ([], [])


def test_every_state_has_an_exit_code():
    assert read.EXIT_CODES == {"running": 0, "done": 0, "failed": 4, "interrupted": 5}
