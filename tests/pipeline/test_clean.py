"""What is cleaned of a workspace written by hand, and what never is."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.main import main
from operators.errors import WorkspaceError
from pipeline import lease
from pipeline.artifact import Artifact, publish_manifest, publish_part
from pipeline.clean.sweep import delete, find
from pipeline.clean.unused import find_unused
from pipeline.integrity import sealed
from pipeline.parts import Part
from pipeline.quarantine import quarantine
from pipeline.snapshots import publish_snapshot
from pipeline.storage import Store
from pipeline.training.checkpoints import save_checkpoint

SCHEMA = pa.schema([("score", pa.float64())])
HASH, OTHER, THIRD = "a" * 16, "1" * 16, "2" * 16
ATTEMPT = f"attempt-{'a' * 32}"


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "work"))


def no_locks(*args):
    raise OSError(errno.ENOSYS, "as on a shared folder")


def publish(store: Store, folder: str, values=(1.0,), settings=None, **facts) -> Artifact:
    """An artifact with a part for each value."""
    parts = []
    for i, value in enumerate(values):
        draft = Part(f"{i}.tar", f"{i:016x}", "", 0, 0, "")
        parts.append(publish_part(store, folder, draft, [pa.table([[value]], schema=SCHEMA)], SCHEMA))
    artifact = Artifact(folder.partition("/")[0], folder, tuple(parts), **facts)
    return publish_manifest(store, artifact, settings or {})


def write(store: Store, *names: str) -> set[str]:
    for name in names:
        store.replace(name, b"x" * 10)
    return set(names)


def found(store: Store, **options) -> set[str]:
    return {path for leftover in find(store, **({"unused": False} | options)) for path in leftover.files}


def test_leftovers_go_and_what_a_run_can_use_stays(store):
    write(store, f"a/{HASH}/fit.npz", f"a/{HASH}/{ATTEMPT}/groups/0.parquet", f"a.training/{HASH}/filter.safetensors")
    info = {"groups": [f"a/{HASH}/{ATTEMPT}/groups/0.parquet"], "fit": f"a/{HASH}/fit.npz"}
    publish(store, f"a/{HASH}", (1.0, 2.0), info=info)
    table = pa.table([[3.0]], schema=SCHEMA)
    publish_part(store, f"c/{HASH}", Part("0.tar", HASH, "", 0, 0, ""), [table], SCHEMA)
    store.replace("ledger.json", sealed({"digest": "d", "digits": 1, "files": []}))
    write(store, f"mine/{HASH}.parquet", f"mine/{HASH}/notes.txt", "report.html", f"datasets/{HASH}/0.parquet")
    write(store, f"b/{HASH}/iterations/0/iteration-0001.npz", f"b/{HASH}/lists.json", "outcomes/x.json")
    write(store, "outcomes/x.parquet", f"tensorboard/{HASH}/events.out")
    write(store, ".lease/000000009.json", ".lease/000000010.json", ".lease/000000010.beat")
    stay = set(store.find(""))
    go = write(
        store,
        f"pieces/{'b' * 32}/x/000000.arrow",
        f"a/{HASH}/{HASH}/.attempt-{'c' * 32}",
        f".probe-{'d' * 32}",
        f"exports/.attempt-{'c' * 32}",
        f"exports/{HASH}/files/.attempt-{'c' * 32}",
        f"training/{OTHER}/checkpoints/5/.attempt-{'c' * 32}",
        f"a/{HASH}/{0:016x}/{OTHER}-01234567.parquet",
        f"c/{HASH}/{HASH}/{OTHER}-01234567.parquet",
        f"c/{HASH}/{OTHER}/{OTHER}-01234567.parquet",
        f"a/{HASH}/{ATTEMPT}/duplicates/000000.parquet",
        f"a/{HASH}/attempt-{'e' * 32}/turns/rows/0.npz",
        f"a/{HASH}/repeats/000000.parquet",
        f"a/{HASH}/iterations/0/iteration-0001.npz",
        "ledger/0-old.parquet",
        "outcomes/y.parquet",
        "damaged/a/x",
    )
    assert found(store) == go
    leftovers = find(store, unused=False)
    assert sum(leftover.bytes for leftover in leftovers) == 10 * len(go)
    delete(store, leftovers)
    assert set(store.find("")) == stay
    root = Path(store.url)
    assert not [path for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_checkpoints_go_with_the_training_that_is_finished(store):
    facts = {"step": 5, "samples_seen": 20, "seconds": 1.5, "waited": 0.5, "loss": 2.0}
    for identity in (HASH, OTHER):
        save_checkpoint(store, f"network/training/{identity}/checkpoints", {"step": 5}, facts)
    write(store, "network/model/open_clip_config.json", "network/model/open_clip_model.safetensors")
    store.replace("network/model/training.json", sealed({"identity": OTHER}))
    assert {name.split("/")[1] for name in found(Store(f"{store.url}/network"))} == {OTHER}
    assert main(["clean", store.url, "--yes"]) == 0
    assert {name.split("/")[2] for name in store.find("network/training")} == {HASH}


def test_unused_keeps_what_the_latest_run_was_made_from(store):
    reference = publish(store, f"reference/{HASH}", (1.0, 5.0))
    old = publish(store, f"samples/{HASH}", (1.0, 2.0, 3.0))
    samples = publish(store, f"samples/{HASH}", (1.0, 2.0))
    filters = [f"score.training/{name}/filter.safetensors" for name in (HASH, OTHER)]
    write(store, *filters)
    inner = publish(store, f"both.score/{HASH}", reads=(samples.manifest,))
    settings, info = {"against": [reference.digest]}, {"filter": filters[0]}
    judged = publish(store, f"both/{HASH}", settings=settings, reads=(inner.manifest,), info=info)
    other = publish(store, f"both/{OTHER}", reads=(samples.manifest,))
    write(store, f"both/{THIRD}/threshold.json")
    assert found(store, unused=True) == set()
    place = {"folder": judged.folder, "manifest": judged.manifest}
    store.replace("run.json", sealed({"artifacts": {"both": place}, "clusters": {}, "verdicts": ["both"]}))
    third = old.parts[2].path
    gone = {old.manifest, third, f"{third.rpartition('/')[0]}/part.json", *store.find(other.folder)}
    assert found(store, unused=True) == gone | {f"both/{THIRD}/threshold.json"}
    assert found(store) == set()
    store.replace("comparison.json", b"{}")
    with pytest.raises(WorkspaceError, match=r"must hold nothing but a curation for --unused, got comparison.json"):
        find_unused(store)


def test_verdicts_that_stand_are_in_use_where_they_were_made(store):
    old = publish(store, f"dedup/{HASH}", (1.0, 2.0))
    new = publish(store, f"dedup/{OTHER}", (3.0,))
    listed = replace(new, parts=(old.parts[0], *new.parts), reads=(old.manifest, f"dedup/{THIRD}/manifest-{HASH}.json"))
    both = publish_manifest(store, listed, {})
    place = {"folder": both.folder, "manifest": both.manifest}
    store.replace("run.json", sealed({"artifacts": {"dedup": place}, "clusters": {}, "verdicts": ["dedup"]}))
    store.remove(old.manifest)
    dropped = old.parts[1].path
    gone = {new.manifest, dropped, f"{dropped.rpartition('/')[0]}/part.json"}
    assert found(store, unused=True) == gone


def test_young_files_stay_where_that_is_asked_for(store):
    old, young = sorted(write(store, "pieces/a/old", "pieces/b/young"))
    os.utime(store.path(old), (0, 0))
    assert found(store, hours=1.0) == {old}
    assert found(store) == {old, young}


def test_the_command_shows_first_and_deletes_when_told_to(store, capsys):
    write(store, "pieces/a/1", "pieces/a/2", "damaged/x")
    assert main(["clean", store.url, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["pieces/a/1", "pieces/a/2", "damaged/x"]
    assert lines[-1] == "3 files of 30 bytes can go: --yes deletes them"
    assert len(store.find("pieces")) == 2
    assert main(["clean", store.url, "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 files of 30 bytes deleted"
    assert main(["clean", store.url]) == 0
    assert capsys.readouterr().out == "nothing to clean\n"
    with store.locked():
        assert main(["clean", store.url, "--yes"]) == 2
    assert "must be used by one run at a time" in capsys.readouterr().err
    process = {"host": "far-away", "pid": 7, "boot": "another", "space": "another", "start": "1"}
    holder = {"attempt": "a", "process": process, "since": "long ago", "renew_seconds": 0.01, "missed_renewals": 2}
    store.publish_json(".lease/000000004.json", holder)
    store.publish_json(".lease/000000004.beat", {"renewals": 9})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease.fcntl, "flock", no_locks)
        assert main(["clean", store.url]) == 0
    told = capsys.readouterr()
    assert told.out == "nothing to clean\n"
    assert "to see whether far-away (process 7) still works" in told.err
    assert store.find(".lease") == {}
    assert main(["clean", f"{store.url}/nothing"]) == 2


def test_diffs_that_no_snapshot_names_go(store):
    named, orphan = (f"snapshots/diff-{letter * 16}/00000.parquet" for letter in "ab")
    write(store, named, orphan)
    publish_snapshot(store, {"format_version": 1, "id": 1, "diff": {"files": [{"path": named}]}})
    assert found(store) == {orphan}


def test_what_a_snapshot_refers_to_is_used(store):
    earlier, latest, other = (
        publish(store, f"a/{name}", (i,), reads=()) for i, name in enumerate((HASH, OTHER, THIRD))
    )
    places = [{"a": {"folder": artifact.folder, "manifest": artifact.manifest}} for artifact in (earlier, latest)]
    record = {"artifacts": places[0], "clusters": {}, "diff": {"files": []}}
    publish_snapshot(store, {"format_version": 1, "id": 1, **record})
    store.replace("run.json", sealed({"artifacts": places[1], "clusters": {}}))
    unused = {path for leftover in find_unused(store) for path in leftover.files}
    assert {path.split("/")[1] for path in unused} == {THIRD}
    assert other.manifest in unused


def test_a_manifest_that_a_snapshot_reads_in_damaged_stays_with_its_parts(store):
    night = publish(store, f"a/{HASH}", (1.0, 2.0), reads=())
    record = {"clusters": {}, "diff": {"files": []}}
    place = {"folder": night.folder, "manifest": night.manifest}
    publish_snapshot(store, {"format_version": 1, "id": 1, "artifacts": {"a": place}, **record})
    store.replace("run.json", sealed({"artifacts": {}, "clusters": {}}))
    lost, whole = (part.path for part in night.parts)
    quarantine(store, lost)
    moved = f"damaged/{night.manifest}"
    assert found(store) == found(store, unused=True) == set(store.find("damaged")) - {moved}
    store.replace(moved, store.read(moved).replace(b"0.tar", b"9.tar"))
    assert whole in found(store, unused=True)
    publish(store, night.folder, (1.0, 2.0))
    store.publish(night.manifest, b"made again")
    assert moved in found(store)


def test_what_exports_know_their_files_by_is_used(store):
    write(store, f"exports/{HASH}.json", f"exports/{HASH}/claim.json", f"exports/{HASH}/files/a.json")
    store.replace("run.json", sealed({"artifacts": {}, "clusters": {}}))
    assert [path for leftover in find_unused(store) for path in leftover.files] == []
