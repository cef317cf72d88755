"""Seven nights over a pool that grows, and what may happen to it afterwards."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.main import main
from operators.errors import ConfigError, LimitExceeded, WorkspaceError
from pipeline.artifact import read_manifest
from pipeline.clean.sweep import delete, find
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.ledger import ledger_sha256, read_ledger
from pipeline.nightly.night import Night, roll_back, run_night
from pipeline.nightly.settings import Nightly
from pipeline.plan import reuse
from pipeline.pool_plan import PoolSettings
from pipeline.progress import Progress
from pipeline.quarantine import quarantine
from pipeline.snapshots import read_history, read_snapshot
from pipeline.storage import Store
from pipeline.verify.workspace import verify

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors")]

NIGHTS, ROWS = 7, 25
SETTINGS = PoolSettings(
    samples=(NIGHTS + 2) * ROWS, samples_per_shard=ROWS, broken=False, exact_fraction=0.12, near_fraction=0.12
)
NEXT = f"{NIGHTS + 1:05d}.tar"
"""The shard that no night has seen."""
OWN = "tests.jobs.own_functions"
STEPS = [
    {"step": "python", "name": "length", "function": f"{OWN}:caption_length", "columns": ["caption"], "gives": "score"},
    {"step": "filter", "name": "long", "score": "length", "keep_fraction": 0.8},
    {"step": "exact_dedup"},
    {"step": "semantic_dedup", "model": "raw", "clusters": 3, "epsilon": 0.01},
    {"step": "prune", "method": "dbp", "model": "raw", "clusters": 4, "keep_fraction": 0.6, "temperature": 0.1},
]
"""A filter, duplicates of both kinds, and quotas: each step that a night does otherwise than a curation."""

Verdict = tuple[str, str | None, str | None]


@dataclass
class Nights:
    """What seven nights left.

    Attributes:
        folder: with `pool/` and `work/`.
        done: each night.
        ledgers: of each night, by uid.
        rows_new: of each night, by step.
        truth: of the generated pool.
    """

    folder: Path
    done: list[Night]
    ledgers: list[dict[str, Verdict]]
    rows_new: list[dict[str, int]]
    truth: list[dict]


def settings(folder: Path, pool: Path, **changed) -> dict:
    denied = folder / "denied.txt"
    if not denied.exists():
        denied.write_text("# nobody yet\n")
    base = {
        "pool": {"format": "webdataset", "path": f"{pool}/*.tar"},
        "workspace": f"{folder}/work",
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": [{"step": "deny", "uids": str(denied)}, *STEPS],
        "export": [{"format": "uids", "path": f"{folder}/kept.npy"}],
        "resources": {"workers": 2},
    }
    return base | changed


def job(folder: Path, pool: Path, **nightly) -> Nightly:
    return Nightly.model_validate(settings(folder, pool, nightly=nightly))


def fates(store: Store) -> dict[str, Verdict]:
    rows = [row for table in read_ledger(store) for row in table.to_pylist()]
    assert len({row["uid"] for row in rows}) == len(rows)
    return {row["uid"]: (row["verdict"], row["step"], row["reason"]) for row in rows}


def kept(ledger: dict[str, Verdict]) -> set[str]:
    return {uid for uid, fate in ledger.items() if fate[0] == "kept"}


def reveal(source: Path, pool: Path, *numbers: int) -> None:
    for number in numbers:
        os.link(source / "pool" / f"{number:05d}.tar", pool / f"{number:05d}.tar")


@pytest.fixture(scope="module")
def nights(ray_here, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nights")
    truth = [row for row in generate_pool(folder / "source", SETTINGS).to_pylist() if row["shard"] < NEXT]
    (folder / "pool").mkdir()
    config = job(folder, folder / "pool")
    found = Nights(folder, [], [], [], truth)
    reveal(folder / "source", folder / "pool", 0)
    for number in range(1, NIGHTS + 1):
        reveal(folder / "source", folder / "pool", number)
        night = run_night(config)
        assert night.is_new
        found.done.append(night)
        found.ledgers.append(fates(config.store))
        times = config.store.read_json(f"snapshots/{number:04d}.night.json")
        found.rows_new.append(times["rows_new"])
    return found


@pytest.fixture
def copied(nights, tmp_path):
    """The same workspace and pool, for what changes them."""
    shutil.copytree(nights.folder / "work", tmp_path / "work")
    (tmp_path / "pool").mkdir()
    for path in sorted((nights.folder / "pool").iterdir()):
        os.link(path, tmp_path / "pool" / path.name)
    return tmp_path


def test_each_night_does_the_work_of_what_is_new(nights):
    facts = zip(nights.done, nights.rows_new, nights.ledgers, strict=True)
    for number, (night, rows_new, ledger) in enumerate(facts, start=1):
        new = ROWS * (2 if number == 1 else 1)
        assert rows_new["samples"] == rows_new["length"] == rows_new["long"] == new
        shards = set(night.snapshot["shards"]["new"])
        entered = {
            row["uid"]
            for row in nights.truth
            if row["shard"] in shards and ledger[row["uid"]][1] not in ("long", "exact_dedup")
        }
        assert rows_new["raw.image"] == len(entered)
        compared = [row for row in nights.truth if row["shard"] in shards and ledger[row["uid"]][1] != "long"]
        assert rows_new["exact_dedup"] == len(compared)


def test_no_earlier_verdict_ever_changes(nights):
    for before, after in zip(nights.ledgers, nights.ledgers[1:], strict=False):
        assert before.items() < after.items()
        assert len(after) == len(before) + ROWS


def test_duplicates_of_earlier_nights_are_found(nights):
    last = nights.ledgers[-1]
    shard_of = {row["uid"]: row["shard"] for row in nights.truth}
    copies = [
        row
        for row in nights.truth
        if row["edit"] == "exact" and row["shard"] > max("00001.tar", shard_of[row["duplicate_of"]])
    ]
    both = [row for row in copies if last[row["uid"]][1] != "long" and last[row["duplicate_of"]][1] != "long"]
    assert len(both) >= 3
    assert {last[row["uid"]] for row in both} == {("dropped", "exact_dedup", "exact_duplicate")}
    near = [
        row
        for row in nights.truth
        if last[row["uid"]][1] == "semantic_dedup"
        and row["duplicate_of"]
        and row["shard"] > shard_of[row["duplicate_of"]]
    ]
    assert near


def test_snapshots_tell_what_changed(nights):
    store = Store(str(nights.folder / "work"))
    assert read_history(store).ids == tuple(range(1, NIGHTS + 1))
    before: set[str] = set()
    for night, ledger in zip(nights.done, nights.ledgers, strict=True):
        snapshot = read_snapshot(store, night.snapshot["id"])
        assert snapshot == json.loads(json.dumps(night.snapshot))
        rows = [
            row for file in snapshot["diff"]["files"] for row in pq.read_table(store.path(file["path"])).to_pylist()
        ]
        assert {row["uid"] for row in rows} == kept(ledger) - before
        assert {row["change"] for row in rows} <= {"added"}
        assert snapshot["counts"]["kept"] == len(kept(ledger))
        assert bool(snapshot["drift"]) == (snapshot["id"] > 1)
        before = kept(ledger)
    assert {drift["measure"] for drift in nights.done[-1].snapshot["drift"]} == {
        *("reject_rate", "score", "cluster_shares", "pressure")
    }
    assert b"7 (this report)" in store.read("report.html")


def test_a_night_with_nothing_new_writes_nothing(nights, capsys):
    (nights.folder / "nightly.json").write_text(json.dumps(settings(nights.folder, nights.folder / "pool")))
    root = nights.folder / "work"

    def state() -> dict[str, int]:
        return {
            str(path): path.stat().st_mtime_ns
            for path in root.rglob("*")
            if path.is_file() and path.name not in (".lock", "status.json")
        }

    before = state()
    assert main(["nightly", str(nights.folder / "nightly.json")]) == 0
    assert capsys.readouterr().out == "nothing new since snapshot 7\n"
    assert state() == before
    assert main(["nightly", str(nights.folder / "nightly.json"), "--dry-run"]) == 0
    assert "there is nothing new after snapshot 7" in capsys.readouterr().out
    assert state() == before


def test_a_second_run_in_parallel_stops(nights):
    config = job(nights.folder, nights.folder / "pool")
    with config.store.locked(), pytest.raises(WorkspaceError, match="must be used by one run at a time"):
        run_night(config)


def test_other_settings_are_refused(nights):
    same = settings(nights.folder, nights.folder / "pool")
    config = Nightly.model_validate(same | {"steps": [*same["steps"][:-1], STEPS[-1] | {"keep_fraction": 0.5}]})
    with pytest.raises(
        ConfigError, match=r"as that of snapshot 7 did, got steps\.prune\.keep_fraction: 0\.5, not 0\.6: "
    ):
        run_night(config)


def test_a_rebalanced_pool_is_a_fresh_run_that_is_given_the_snapshot(nights, copied, tmp_path, capsys):
    night = run_night(job(copied, copied / "pool", policy="rebalance"))
    assert (night.snapshot["id"], night.snapshot["policy"]) == (8, "rebalance")
    rebalanced = Store(str(copied / "work"))
    assert not run_night(job(copied, copied / "pool", policy="rebalance")).is_new

    (tmp_path / "fresh").mkdir()
    given = {"workspace": str(nights.folder / "work"), "snapshot": 7}
    fresh = Curation.model_validate(settings(tmp_path / "fresh", copied / "pool", given=given))
    assert not reuse.find(fresh).is_whole
    run_curation(fresh)
    assert reuse.find(fresh).is_whole
    assert ledger_sha256(fresh.store) == ledger_sha256(rebalanced)

    (tmp_path / "refit").mkdir()
    refit = Curation.model_validate(settings(tmp_path / "refit", copied / "pool"))
    run_curation(refit)
    ours, theirs, appended = kept(fates(rebalanced)), kept(fates(refit.store)), kept(nights.ledgers[-1])
    with capsys.disabled():
        print(
            f"\nkept by seven nights: {len(appended)}, rebalanced: {len(ours)}, by a run that fits everything anew: "
            f"{len(theirs)}; of the last, {len(ours & theirs)} rebalanced and {len(appended & theirs)} by seven nights"
        )
    assert len(ours & theirs) / len(ours | theirs) > 0.5


def test_a_curation_leaves_the_workspace_of_nights_alone(nights):
    config = Curation.model_validate(settings(nights.folder, nights.folder / "pool"))
    for use in (run_curation, reuse.find):
        with pytest.raises(WorkspaceError, match=r"must be a workspace without snapshots .* latest is 7"):
            use(config)


def test_nothing_of_undisturbed_nights_is_unfinished(nights):
    found = verify(Store(str(nights.folder / "work")), workers=2, progress=Progress())
    fits = {"prune.clusters", "semantic_dedup.clusters"}  # of the first night, whose rows are assigned to a copy
    assert {row.name.partition("/")[0] for row in found.rows if row.state == "files only"} == fits
    assert {row.state for row in found.rows} == {"sound", "files only"}


def test_an_earlier_snapshot_is_gone_back_to(nights, copied, tmp_path):
    config = job(copied, copied / "pool")
    night = roll_back(config, 3)
    assert not night.is_new
    assert night.summary is not None
    assert [step.name for step in night.summary.steps][:4] == ["samples", "unique_uid", "deny", "length"]
    assert fates(config.store) == nights.ledgers[2]
    assert read_history(config.store).current == 3
    assert config.store.read_json("run.json")["snapshot"] == 3
    again = run_night(config)
    assert (again.snapshot["id"], again.snapshot["parent"]) == (8, 3)
    assert len(again.snapshot["shards"]["new"]) == 4
    assert nights.ledgers[2].items() < fates(config.store).items()
    assert verify(config.store, workers=2, progress=Progress()).damage == []
    left = find(config.store, unused=True)
    unused = {path for leftover in left if "not used" in leftover.what for path in leftover.files}
    assert {path.rpartition("/")[2] for path in unused} <= {"fit.npz"}  # whose centroids lie with their assignments
    delete(config.store, left)
    roll_back(config, 5)
    assert fates(config.store) == nights.ledgers[4]


@pytest.mark.parametrize("name", ["samples", "prune"])
def test_a_part_of_the_first_night_that_was_lost_is_made_again(nights, copied, name):
    """Of `samples` it is the same, and every snapshot whole again; a verdict is another, and the latest is whole."""
    config = job(copied, copied / "pool")
    place = read_snapshot(config.store, 1)["artifacts"][name]
    lost = read_manifest(config.store, place["folder"], place["manifest"]).parts[0].path
    moved = quarantine(config.store, lost)
    assert len([path for path in moved if "/manifest-" in path]) == NIGHTS
    night = run_night(config)
    assert (night.is_new, night.snapshot["id"], night.snapshot["shards"]["new"]) == (True, 8, [])
    assert not run_night(config).is_new
    found = fates(config.store)
    if name == "samples":
        assert found == nights.ledgers[-1]
        assert verify(config.store, workers=2, progress=Progress()).damage == []
        roll_back(config, 3)
        assert fates(config.store) == nights.ledgers[2]
    else:
        own = {row["uid"] for row in nights.truth if row["shard"] == "00000.tar"}
        assert {uid: fate for uid, fate in found.items() if uid not in own} == {
            uid: fate for uid, fate in nights.ledgers[-1].items() if uid not in own
        }


def test_earlier_snapshots_are_read_as_they_were(nights, tmp_path, capsys):
    work = str(nights.folder / "work")
    to = tmp_path / "two.npy"
    assert main(["export", work, "--snapshot", "2", "--format", "uids", "--to", str(to)]) == 0
    assert f"  {len(kept(nights.ledgers[1]))}  " in capsys.readouterr().out
    new = next(row["uid"] for row in nights.truth if row["shard"] == "00007.tar")
    old = next(iter(nights.ledgers[1]))
    assert main(["why", work, old, "--snapshot", "2"]) == 0
    verdict, step, _ = nights.ledgers[1][old]
    assert f"{old} {verdict}" + (f" by {step}" if step else "") in capsys.readouterr().out
    assert main(["why", work, new, "--snapshot", "2"]) == 2
    assert main(["report", work, "--snapshot", "2"]) == 0
    assert b"2 (this report)" in (nights.folder / "work/snapshots/0002.html").read_bytes()
    assert main(["rejects", work, "--snapshot", "9"]) == 2


def test_changed_and_vanished_shards(nights, copied):
    pool = copied / "pool"
    other = (pool / "00003.tar").read_bytes()
    (pool / "00003.tar").unlink()
    (pool / "00003.tar").write_bytes(other)
    (pool / "00004.tar").unlink()
    with pytest.raises(LimitExceeded) as stopped:
        run_night(job(copied, pool))
    assert "nightly.changed), got 1: 00003.tar" in str(stopped.value)
    assert "nightly.vanished), got 1: 00004.tar" in str(stopped.value)

    night = run_night(job(copied, pool, changed="leave_out", vanished="leave_out"))
    shards = night.snapshot["shards"]
    assert (shards["new"], shards["changed"], shards["vanished"]) == ([], ["00003.tar"], ["00004.tar"])
    store = Store(str(copied / "work"))
    gone = {row["uid"]: row["shard"] for row in nights.truth if row["shard"] in ("00003.tar", "00004.tar")}
    assert fates(store).items() == {uid: fate for uid, fate in nights.ledgers[-1].items() if uid not in gone}.items()
    rows = [
        row for file in night.snapshot["diff"]["files"] for row in pq.read_table(store.path(file["path"])).to_pylist()
    ]
    why = {"00003.tar": "shard_changed", "00004.tar": "shard_vanished"}
    assert {(row["uid"], row["reason"]) for row in rows} == {
        (uid, why[gone[uid]]) for uid in kept(nights.ledgers[-1]) & gone.keys()
    }
    assert not run_night(job(copied, pool)).is_new  # what was left out stays out

    night = run_night(job(copied, pool, changed="as_new"))
    assert night.snapshot["shards"]["new"] == ["00003.tar"]
    assert len(fates(store)) == (NIGHTS) * ROWS


def test_who_opts_out_is_gone_the_next_night_and_nothing_else_changes(nights, copied):
    before = nights.ledgers[-1]
    shard_of = {row["uid"]: row["shard"] for row in nights.truth}
    originals = {row["duplicate_of"] for row in nights.truth if before[row["uid"]][1] == "exact_dedup"}
    out = [min(kept(before) & originals), min(uid for uid in kept(before) if shard_of[uid] == "00006.tar")]
    config = job(copied, copied / "pool")
    (copied / "denied.txt").write_text("\n".join(out))
    night = run_night(config)
    assert (night.is_new, night.snapshot["shards"]["new"], night.snapshot["diff"]["removed"]) == (True, [], len(out))
    assert fates(config.store) == before | dict.fromkeys(out, ("dropped", "deny.again", "denied_uid"))
    assert b"deny.again" in config.store.read("report.html")
    assert not run_night(config).is_new

    os.link(nights.folder / "source/pool" / NEXT, copied / "pool" / NEXT)
    (copied / "denied.txt").write_text(out[0])
    run_night(config)
    assert (before | {out[0]: ("dropped", "deny.again", "denied_uid")}).items() < fates(config.store).items()
    assert verify(config.store, workers=2, progress=Progress()).damage == []


def test_drift_stops_a_night_before_anything_shows(nights, copied):
    generate_pool(copied / "other", PoolSettings(samples=60, samples_per_shard=60, seed=9))
    os.link(copied / "other/pool/00000.tar", copied / "pool/00100.tar")
    config = job(copied, copied / "pool", drift={"reject_rate": {"stop": 0.05}})
    config = config.model_copy(update={"pool": config.pool.model_copy(update={"max_reject_fraction": 1.0})})
    before = config.store.read("run.json"), config.store.read("ledger.json")
    with pytest.raises(LimitExceeded, match=r"drift: reject_rate is 0\.\d+, above the 0\.05 of nightly\.drift"):
        run_night(config)
    assert (config.store.read("run.json"), config.store.read("ledger.json")) == before
    assert read_history(config.store).current == NIGHTS


class Killed(BaseException):
    """In place of the signal, which `tests/faults` sends."""


@pytest.mark.parametrize(("owner", "name"), [("curate", "write_summary"), ("nightly.night", "publish_snapshot")])
def test_a_killed_night_ends_with_the_same_snapshot(nights, copied, monkeypatch, owner, name):
    """Killed once its record is there, and just before its snapshot is."""
    os.link(nights.folder / "source/pool" / NEXT, copied / "pool" / NEXT)
    config = job(copied, copied / "pool")
    snapshot = copied / "work/snapshots/0008.json"

    def kill(*values, **named):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.{owner}.{name}", kill)
        with pytest.raises(Killed):
            run_night(config)
    assert config.store.read_json("run.json")["snapshot"] == 8
    assert read_history(config.store).current == 7
    assert run_night(config).is_new
    rerun = snapshot.read_bytes()
    rows_new = config.store.read_json("snapshots/0008.night.json")["rows_new"]
    assert (rows_new["samples"], rows_new["length"]) == (ROWS, ROWS)  # the attempt that was killed had made them
    shutil.rmtree(copied / "work")
    (copied / "kept.npy").unlink()
    shutil.copytree(nights.folder / "work", copied / "work")
    run_night(config)
    assert rerun == snapshot.read_bytes()
