"""Two nights over a generated pool, the second beside what stands, and what a rebalance equals; on Ray."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.artifact import read_columns
from pipeline.clean.leftovers import find_leftovers
from pipeline.columns import embeddings
from pipeline.curate import check, run_steps, start_run
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.given import Given, Policy, Standing, bring, standing_titles
from pipeline.ledger import ledger_sha256, read_ledger
from pipeline.ledger_writer import write_ledger
from pipeline.pool_plan import PoolSettings
from pipeline.progress import Progress
from pipeline.quarantine import quarantine
from pipeline.run import Run
from pipeline.steps.clusters import fit_of
from pipeline.storage import Store
from pipeline.verify.workspace import verify

pytestmark = pytest.mark.ray

EPSILON = 0.02
CLUSTERED = {"model": "raw", "clusters": 5, "iterations": 3}
STEPS = [
    {"step": "rules", "min_side": 20},
    {"step": "exact_dedup"},
    {"step": "filter", "column": "bytes", "keep_fraction": 0.9},
    {"step": "semantic_dedup", "epsilon": EPSILON, "epsilons": [0.1], "neighbour_clusters": 1, **CLUSTERED},
    {"step": "prune", "method": "dbp", "keep_fraction": 0.6, "merge": {"to": 3}, **CLUSTERED},
    {"step": "prune", "name": "drawn", "method": "random", "keep_fraction": 0.75},
]
OLD, NEW = 3, 2


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> pa.Table:
    """The truth about a pool of five shards."""
    settings = PoolSettings(samples=150, samples_per_shard=30, broken=False, exact_fraction=0.12, near_fraction=0.2)
    return generate_pool(tmp_path_factory.getbasetemp() / "generated", settings)


def config(pool: Path, workspace: Path) -> Curation:
    settings = {
        "pool": {"format": "webdataset", "path": f"{pool}/*.tar", "chunk_samples": 16},
        "workspace": str(workspace),
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": STEPS,
        "report": False,
    }
    return Curation.model_validate(settings)


def run_all(settings: Curation, given: Given | None, standing: Standing | None = None, workers: int = 2) -> Run:
    """All steps and the ledger."""
    shards = check(settings)
    run = start_run(settings, shards, workers=workers, progress=Progress(), given=given, standing=standing)
    for _ in run_steps(run, settings.steps):
        pass
    run.artifacts["ledger"] = write_ledger(run, run.verdicts)
    return run


def standing_of(settings: Curation, run: Run, policy: Policy) -> Standing:
    titles = standing_titles(settings.steps, policy)
    return Standing(run.store, {title: run.artifacts[title] for title in titles})


def reveal(truth: pa.Table, base: Path, pool: Path, numbers: range) -> None:
    pool.mkdir(exist_ok=True)
    for number in numbers:
        shutil.copy2(base / "generated" / "pool" / f"{number:05d}.tar", pool)


class Nights:
    """Two nights: three shards, then two more with all that stands."""

    def __init__(self, truth: pa.Table, base: Path) -> None:
        self.config = config(base / "pool", base / "work")
        reveal(truth, base, base / "pool", range(OLD))
        self.first = run_all(self.config, Given())
        assert self.first.given is not None
        self.given = self.first.given
        self.found = Given(dict(self.given.thresholds), dict(self.given.fits))
        self.first_ledger = pa.concat_tables(read_ledger(self.first.store))
        reveal(truth, base, base / "pool", range(OLD, OLD + NEW))
        self.standing = standing_of(self.config, self.first, "append")
        self.second = run_all(self.config, self.given, self.standing)


@pytest.fixture(scope="module")
def nights(truth, tmp_path_factory, ray_here) -> Nights:
    return Nights(truth, tmp_path_factory.getbasetemp())


def rows(run: Run, title: str) -> Mapping[str, dict]:
    """What a step says of each row that entered it, by uid; `old` tells of which night."""
    found = {}
    for i, (samples, verdicts) in enumerate(zip(run.samples.parts, run.artifacts[title].parts, strict=True)):
        uids = read_columns(run.store, samples.path, ["uid"])["uid"].to_pylist()
        for uid, row in zip(uids, read_columns(run.store, verdicts.path).to_pylist(), strict=True):
            if row["kept"] is not None:
                found[uid.hex()] = row | (row.get("detail") or {}) | {"old": i < OLD}
    return found


def test_what_the_first_night_finds_is_given_to_the_second(nights):
    assert nights.found == nights.given
    assert list(nights.found.thresholds) == ["filter"]
    assert set(nights.found.fits) == {"semantic_dedup", "prune"}
    kept = [row["value"] for row in rows(nights.first, "filter").values() if row["kept"]]
    assert min(kept) == nights.found.thresholds["filter"]
    assert len(kept) >= round(0.9 * len(rows(nights.first, "filter")))


def test_no_earlier_verdict_changes_and_only_new_rows_cost(nights):
    for earlier, later in zip(nights.first.verdicts, nights.second.verdicts, strict=True):
        assert list(later.parts)[:OLD] == list(earlier.parts)
    before = nights.first_ledger.sort_by("uid")
    after = pa.concat_tables(read_ledger(nights.second.store)).sort_by("uid")
    assert after.filter(pc.is_in(after["uid"], before["uid"])).equals(before)
    artifacts = {**nights.second.artifacts, **{f"{t} clusters": a for t, a in nights.second.clusters.items()}}
    del artifacts["ledger"]
    for artifact in artifacts.values():
        assert artifact.rows_new == sum(part.counts["in"] for part in list(artifact.parts)[OLD:])
        assert 0 < artifact.rows_new < artifact.total("in")


def test_a_third_time_nothing_is_done(nights):
    again = run_all(nights.config, nights.given, nights.standing, workers=3)
    assert all(artifact.reused and artifact.rows_new == 0 for artifact in again.artifacts.values())
    assert again.verdicts[-1].digest == nights.second.verdicts[-1].digest


def test_exact_duplicates_of_earlier_nights_are_found(nights, truth):
    said = rows(nights.second, "exact_dedup")
    image_of = {}
    for row in truth.to_pylist():
        image_of[row["uid"]] = image_of[row["duplicate_of"]] if row["edit"] == "exact" else row["uid"]
    groups: dict[str, list[str]] = {}
    for uid in said:
        groups.setdefault(image_of[uid], []).append(uid)
    across = 0
    for uids in groups.values():
        old = [uid for uid in uids if said[uid]["old"]]
        first = min(old or uids)
        assert [uid for uid in uids if said[uid]["kept"]] == [first]
        assert {said[uid]["duplicate_of"] for uid in uids if uid != first} <= {first}
        across += bool(old) and len(old) < len(uids)
    assert across


def test_near_duplicates_of_earlier_nights_are_found(nights):
    run, said = nights.second, rows(nights.second, "semantic_dedup")
    clusters, vectors = run.clusters["semantic_dedup"], run.embeddings["raw", "image"]
    x, cluster = {}, {}
    for samples, assigned, embedded in zip(run.samples.parts, clusters.parts, vectors.parts, strict=True):
        uids = [uid.hex() for uid in read_columns(run.store, samples.path, ["uid"])["uid"].to_pylist()]
        column = read_columns(run.store, embedded.path)["embedding"]
        there = [uid for uid, present in zip(uids, column.is_valid().to_pylist(), strict=True) if present]
        x |= dict(zip(there, embeddings(column).astype(np.float64), strict=True))
        cluster |= dict(zip(uids, read_columns(run.store, assigned.path)["cluster"].to_pylist(), strict=True))
    stays = [uid for uid, row in said.items() if row["kept"]]
    old = [uid for uid in stays if said[uid]["old"]]
    for uid, row in said.items():
        near = {other for other in stays if other != uid and x[uid] @ x[other] > 1 - EPSILON}
        if row["kept"]:
            assert not [other for other in near if cluster[other] == cluster[uid]]
        else:
            assert row["duplicate_of"] in near
            assert row["duplicate_of"] in old or not row["old"]
    across = [uid for uid, row in said.items() if not row["old"] and row["duplicate_of"] in old]
    assert across
    artifact = run.artifacts["semantic_dedup"]
    assert artifact.info["epsilons"] == [EPSILON, 0.1]
    assert artifact.info["removed"][0] == len(said) - len(stays)


def test_quotas_are_filled_up_with_the_hardest_new_rows(nights):
    run, said = nights.second, rows(nights.second, "prune")
    table = read_columns(run.store, run.artifacts["prune"].info["clusters"])
    fit = fit_of(run.store, run.clusters["prune"].info)
    assert fit.merged is not None
    clusters = np.array([row["cluster"] for row in said.values()])
    similarities = np.array([1 - row["distance"] for row in said.values()])
    np.testing.assert_array_equal(fit.sizes_K, np.bincount(clusters, minlength=3))
    np.testing.assert_allclose(fit.similarity_K, np.bincount(clusters, similarities, 3), rtol=1e-12)
    assert table["quota"].to_pylist() == [
        sum(row["kept"] for row in said.values() if row["cluster"] == cluster) for cluster in range(3)
    ]
    assert sum(table["quota"].to_pylist()) == round(0.6 * len(said))
    for cluster, standing, quota in zip(*(table[n].to_pylist() for n in ("cluster", "standing", "quota")), strict=True):
        members = {uid: row for uid, row in said.items() if row["cluster"] == cluster}
        assert standing == sum(row["kept"] for row in members.values() if row["old"])
        new = sorted((-row["distance"], uid) for uid, row in members.items() if not row["old"])
        assert {uid for _, uid in new[: quota - standing]} == {
            uid for uid, row in members.items() if row["kept"] and not row["old"]
        }
    drawn = rows(run, "drawn")
    assert sum(row["kept"] for row in drawn.values()) == round(0.75 * len(drawn))


def test_a_rebalance_is_a_fresh_run_that_is_given_the_same(nights, tmp_path):
    standing = standing_of(nights.config, nights.second, "rebalance")
    rebalanced = run_all(nights.config, nights.given, standing)
    wanted = ledger_sha256(rebalanced.store)
    fresh_config = config(Path(nights.config.pool.sources[0].path).parent, tmp_path)
    given = bring(nights.given, nights.first.store, Store(str(tmp_path)))
    fresh = run_all(fresh_config, given, standing, workers=3)
    assert ledger_sha256(fresh.store) == wanted
    assert fresh.artifacts["semantic_dedup"].rows_new == 0
    assert fresh.artifacts["prune"].rows_new == fresh.artifacts["prune"].total("in")
    old = {uid: row["kept"] for uid, row in rows(nights.second, "prune").items()}
    assert old != {uid: row["kept"] for uid, row in rows(rebalanced, "prune").items()}
    assert verify(fresh.store, workers=2, progress=Progress()).damage == []


def test_what_stands_is_sound_in_use_and_judged_anew_where_it_is_lost(nights, tmp_path):
    store = nights.second.store
    assert verify(store, workers=2, progress=Progress()).damage == []
    left = {path for leftover in find_leftovers(store) for path in leftover.files}
    assert not {part.path for artifact in nights.second.verdicts for part in artifact.parts} & left
    shutil.copytree(store.url, tmp_path / "copy")
    copied = nights.config.model_copy(update={"workspace": str(tmp_path / "copy")})
    lost = nights.standing.verdicts["exact_dedup"].parts[1]
    quarantine(copied.store, lost.path)
    fit = nights.given.fits["semantic_dedup"]
    copied.store.move(fit, "damaged/fit")
    found = run_all(copied, nights.given, Standing(copied.store, nights.standing.verdicts))
    assert found.clusters["semantic_dedup"].parts[0] == nights.second.clusters["semantic_dedup"].parts[0]
    again = found.artifacts["exact_dedup"]
    own = [part.path.startswith(f"{again.folder}/") for part in again.parts]
    assert own == [False, True, False] + [True] * NEW  # what is new has another address, beside other rows
    assert again.total("kept") == nights.second.artifacts["exact_dedup"].total("kept")  # one of each image
