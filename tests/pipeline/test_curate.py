"""A whole curation of a generated pool, on a real Ray: the ledger against the truth, reuse, and invariance."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import LimitExceeded
from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.ledger import ledger_sha256, read_ledger
from pipeline.plan.machines import Machines
from pipeline.plan.plan import make_plan
from pipeline.plan.reuse import find
from pipeline.pool_plan import PoolSettings
from pipeline.progress import Progress, StepProgress
from pipeline.sample_faults import GENERATED_MEMBER_LIMIT

pytestmark = pytest.mark.ray

STEPS = [
    {"step": "rules", "min_side": 40, "min_words": 2},
    {"step": "exact_dedup"},
    {"step": "filter", "name": "small_files", "column": "bytes", "keep_fraction": 0.9, "best": "lowest"},
    {"step": "prune", "method": "dbp", "model": "raw", "clusters": 12, "keep_fraction": 0.5, "neighbours": 5},
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "data"
    generate_pool(folder, PoolSettings(samples=400, samples_per_shard=100))
    return folder


def config(generated: Path, workspace: Path, **changes) -> Curation:
    settings = {
        "pool": {
            "format": "webdataset",
            "path": f"{generated}/pool/*.tar",
            "max_member_bytes": GENERATED_MEMBER_LIMIT,
            "chunk_samples": 32,
            "max_reject_fraction": 0.1,
        },
        "workspace": str(workspace),
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": STEPS,
    }
    return Curation.model_validate(settings | changes)


def run(settings: Curation, workers: int = 3):
    return curate(settings, check(settings), workers=workers, progress=Progress())


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "status.json"
    }


@pytest.fixture(scope="module")
def curated(pool, tmp_path_factory, ray_here):
    folder = tmp_path_factory.mktemp("curated")
    exports = [
        {"format": "webdataset", "path": str(folder / "out")},
        {"format": "uids", "path": str(folder / "subset.npy")},
    ]
    settings = config(pool, folder / "workspace", export=exports)
    return settings, run(settings), folder


def test_every_sample_that_can_be_seen_has_one_ledger_row_and_its_true_reason(curated, pool):
    settings, summary, _ = curated
    ledger = pa.concat_tables(read_ledger(settings.store)).to_pylist()
    truth = [row for row in pq.read_table(pool / "truth.parquet").to_pylist() if row["expected"] != "unseen"]
    assert len(ledger) == len(truth) == summary.samples_seen
    expected = {(row["shard"], row["key"]): row for row in truth}
    assert {(row["shard"], row["key"]) for row in ledger} == set(expected)
    for row in ledger:
        true = expected[row["shard"], row["key"]]
        assert row["uid"] == true["uid"]
        if true["expected"] == "ok":
            assert row["verdict"] in {"kept", "dropped"}
        else:
            assert (row["verdict"], row["reason"]) == ("rejected", true["expected"])
    repeated = [uid for uid, count in Counter(row["uid"] for row in ledger).items() if count > 1]
    assert all(sum(row["uid"] == uid and row["reason"] != "duplicate_uid" for row in ledger) == 1 for uid in repeated)


def test_the_sums_add_up(curated):
    settings, summary, _ = curated
    written = json.loads(settings.store.read("summary.json"))
    dropped = sum(sum(reasons.values()) for reasons in written["dropped"].values())
    assert written["samples_seen"] == written["kept"] + dropped + sum(written["rejected"].values())
    assert set(written["dropped"]) == {"rules", "exact_dedup", "small_files", "prune"}
    assert written["dropped"]["exact_dedup"]["exact_duplicate"] > 0
    steps = {step["name"]: step for step in written["steps"]}
    assert steps["small_files"]["rows_out"] == round(0.9 * steps["small_files"]["rows_in"])
    assert summary.kept == steps["prune"]["rows_out"] == round(0.5 * steps["prune"]["rows_in"])
    assert list(written["shards_damaged"]) == ["00003.tar"]
    assert written["shards_damaged"]["00003.tar"]["reason"] == "truncated"


def test_exact_duplicates_name_the_lowest_uid_that_stays(curated):
    settings, _, _ = curated
    rows = {row["uid"]: row for table in read_ledger(settings.store) for row in table.to_pylist()}
    duplicates = [row for row in rows.values() if row["step"] == "exact_dedup"]
    for row in duplicates:
        first = json.loads(row["detail"])["duplicate_of"]
        assert first < row["uid"]
        assert rows[first]["step"] != "exact_dedup"


def test_pruned_members_lie_nearer_than_the_last_one_kept(curated):
    settings, _, _ = curated
    table = pa.concat_tables(read_ledger(settings.store)).to_pylist()
    kept = Counter()
    for row in table:
        detail = json.loads(row["detail"])
        if row["step"] == "prune":
            assert row["reason"] == "over_quota"
            assert detail["distance"] <= detail["threshold"]
        elif row["verdict"] == "kept":
            assert detail["prune"]["distance"] >= detail["prune"]["threshold"]
            kept[detail["prune"]["cluster"], detail["prune"]["quota"]] += 1
    assert all(count == quota for (_, quota), count in kept.items())


def test_a_second_run_reuses_every_step_and_changes_no_file(curated, ray_here):
    settings, _, folder = curated
    before = files_of(folder)
    summary = run(settings)
    assert all(step.reused for step in summary.steps)
    assert all(export.reused for export in summary.exports)
    assert files_of(folder) == before
    plan = make_plan(settings, Machines(cpus=4), {})
    assert [step.name for step in plan.steps] == [
        "samples",
        "unique_uid",
        "rules",
        "exact_dedup",
        "small_files",
        "raw.image",
        "prune",
        "ledger",
        *(f"export {export.format}" for export in settings.export),
    ]
    assert all(step.reused for step in plan.steps)
    assert plan.total.cpu_seconds == plan.total.written == 0
    assert files_of(folder) == before


def test_a_ledger_of_another_config_is_planned_anew(curated, monkeypatch):
    settings, _, _ = curated
    monkeypatch.setattr("pipeline.plan.reuse.find_ledger", lambda store: None)
    found = find(settings)
    assert (len(found.exports), "ledger" in found.artifacts, found.is_whole) == (2, False, False)


def test_a_step_that_is_new_is_planned(curated):
    settings, _, _ = curated
    again = Curation.model_validate(settings.model_dump() | {"export": []})
    assert find(again).is_whole
    steps = [*again.model_dump()["steps"], {"step": "rules", "name": "new", "min_words": 3}]
    found = find(Curation.model_validate(again.model_dump() | {"steps": steps}))
    assert ("ledger" in found.artifacts, found.is_whole) == (False, False)


def test_no_attempt_leaves_anything_behind(curated):
    _settings, _, folder = curated
    names = files_of(folder)
    assert not [name for name in names if "attempt" in name or "probe" in name or "pieces" in name]


def test_the_subset_is_sorted_and_holds_the_kept_uids(curated):
    settings, _, folder = curated
    pairs = np.load(folder / "subset.npy")
    assert pairs.dtype == np.dtype("u8,u8")
    uids = [f"{int(high):016x}{int(low):016x}" for high, low in pairs]
    rows = [row for table in read_ledger(settings.store) for row in table.to_pylist()]
    assert uids == sorted(row["uid"] for row in rows if row["verdict"] == "kept")


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (4, 4)])
def test_the_ledger_does_not_depend_on_workers_or_threads(
    curated, pool, tmp_path, ray_here, workers, threads, monkeypatch
):
    monkeypatch.setattr("pipeline.placement._WORTH_AN_ENCODER", 1)  # so many encoders as workers
    settings, _, _ = curated
    other = config(pool, tmp_path, resources={"threads": threads}, report=False)
    run(other, workers)
    assert ledger_sha256(other.store) == ledger_sha256(settings.store)


def test_the_ledger_does_not_depend_on_the_order_of_the_listing(curated, pool, tmp_path, ray_here):
    settings, _, _ = curated
    tars = sorted((pool / "pool").glob("*.tar"), reverse=True)
    sources = [{"format": "webdataset", "path": str(tar), "root": str(pool / "pool")} for tar in tars]
    own = settings.pool.model_dump(exclude={"sources"})
    other = config(pool, tmp_path, pool=own | {"sources": sources}, report=False)
    run(other)
    assert ledger_sha256(other.store) == ledger_sha256(settings.store)


def test_one_new_shard_costs_one_new_part(pool, tmp_path, ray_here):
    home = tmp_path / "pool"
    home.mkdir()
    for name in ("00000.tar", "00001.tar"):
        (home / name).write_bytes((pool / "pool" / name).read_bytes())
    steps = [{"step": "prune", "method": "random", "keep_fraction": 0.5}]
    pool_settings = {"format": "webdataset", "path": f"{home}/*.tar", "max_reject_fraction": 0.5}
    settings = config(pool, tmp_path / "workspace", pool=pool_settings, steps=steps, report=False)
    run(settings)
    before = {name for name in files_of(tmp_path / "workspace") if name.startswith("samples/")}
    (home / "00002.tar").write_bytes((pool / "pool" / "00002.tar").read_bytes())
    summary = run(settings)
    added = {name for name in files_of(tmp_path / "workspace") if name.startswith("samples/")} - before
    assert len({Path(name).parts[2] for name in added if name.endswith(".parquet")}) == 1
    assert summary.samples_seen == 300


class Ended(Progress):
    """Remembers how many rows each step worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = {}

    def ended(self, step: StepProgress, end: str) -> None:
        self.rows[step.name] = (step.rows, step.total, end)


def test_a_step_that_goes_on_works_on_what_is_missing(pool, tmp_path, ray_here):
    settings = config(pool, tmp_path / "workspace", steps=STEPS[:2] + STEPS[3:], report=False)
    seen, whole = run(settings).samples_seen, ledger_sha256(settings.store)
    missing, rows = {}, {}
    for step in ("rules", "raw.image"):
        (manifest,) = (tmp_path / "workspace" / step).glob("*/manifest-*.json")
        first, *rest = json.loads(manifest.read_bytes())["parts"]
        missing[step], rows[step] = first["counts"]["in"], sum(part["counts"]["in"] for part in rest)
        shutil.rmtree((tmp_path / "workspace" / first["path"]).parent)
        manifest.unlink()
    assert find(settings).begun == {}  # a plan looks no further than the first of the two
    shown = Ended()
    curate(settings, check(settings), workers=3, progress=shown)
    assert {step: shown.rows[step] for step in missing} == {
        step: (count, count, "done") for step, count in missing.items()
    }
    assert ledger_sha256(settings.store) == whole
    (manifest,) = (tmp_path / "workspace/raw.image").glob("*/manifest-*.json")
    shutil.rmtree((tmp_path / "workspace" / json.loads(manifest.read_bytes())["parts"][0]["path"]).parent)
    manifest.unlink()
    begun = find(settings)
    assert begun.begun["raw.image"] == rows["raw.image"]
    assert begun.samples == seen


def test_too_many_rejects_stop_the_run_before_anything_downstream(pool, tmp_path, ray_here):
    strict = config(pool, tmp_path).pool.model_dump() | {"max_reject_fraction": 0.01}
    settings = config(pool, tmp_path, pool=strict)
    with pytest.raises(
        LimitExceeded, match=r"at most 1\.00% of the \d+ samples .*pool\.max_reject_fraction.*worst shards"
    ):
        run(settings)
    assert not settings.store.exists("ledger.json")
    assert not (tmp_path / "rules").exists()
