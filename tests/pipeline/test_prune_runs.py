"""Every way to prune in one run on Ray, of stored embeddings: against brute force, the same bytes however spread."""

import io
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import cdist

from operators.errors import InputError
from pipeline import run as running
from pipeline.artifact import read_columns
from pipeline.columns import booleans, embeddings, uid_rows
from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.ledger import ledger_sha256, read_ledger
from pipeline.progress import Progress
from pipeline.record import open_run
from tests.embedding_pools import write_datacomp

pytestmark = pytest.mark.ray

KINDS = ("red", "green", "grey", "3")
"""Classes, each around a direction of its own."""

CLUSTERS = {"model": "raw", "clusters": 6, "iterations": 3}
PROTOTYPES = {"step": "prune", "method": "prototypes", "model": "raw"}
ROWS_PER_ACTOR = 80  # up to four actors: each takes more than a second to start, and a run asks for seven searches


def write_shard(folder: Path, name: str, kinds: list, seed: int) -> None:
    """Embeddings of some classes, more and less like them; every eleventh sample has no label."""
    rng = np.random.default_rng(seed)
    x_ND = 2 * np.eye(8)[[KINDS.index(str(kind)) for kind in kinds]] + 0.5
    x_ND += rng.uniform(0.05, 1.2, (len(kinds), 1)) * rng.standard_normal(x_ND.shape)
    lacks = np.arange(len(kinds)) % 11 == 0
    columns = {"kind": pa.array(kinds, mask=lacks), "sort": pa.array(["image"] * len(kinds), mask=lacks)}
    write_datacomp(folder, name, pa.table(columns), raw_img=x_ND.astype(np.float32))


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """Shards of unequal size, of which the last has numbers for labels; a target in which they are text."""
    folder = tmp_path_factory.mktemp("pools")
    rng = np.random.default_rng(99)
    for number in range(6):
        kinds = rng.choice(KINDS[:3], 36 + number, p=[0.6, 0.25, 0.15]).tolist()
        write_shard(folder / "pool", f"{number}", kinds, seed=number)
    write_shard(folder / "pool", "6", [3] * 70, seed=6)
    write_shard(folder / "target", "0", rng.choice(["red", "green", "3"], 60).tolist(), seed=99)
    return folder


@pytest.fixture(scope="module", autouse=True)
def several_actors():
    """Several actors for few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "ROWS_PER_ACTOR", ROWS_PER_ACTOR)
        yield


def config(folder: Path, workspace: Path, steps: list, **changes) -> Curation:
    settings = {
        "pool": {"format": "datacomp", "path": f"{folder}/pool"},
        "workspace": str(workspace),
        "models": {"raw": {"library": "stored", "image": "raw_img"}},
        "steps": steps,
        "report": False,
    }
    return Curation.model_validate(settings | changes)


def curated(settings: Curation, workers: int = 1) -> Curation:
    curate(settings, check(settings), workers=workers, progress=Progress())
    return settings


def steps_of(pool: Path) -> list[dict]:
    target = {"format": "datacomp", "path": f"{pool}/target"}
    return [
        {"step": "prune", "name": "stratified", "method": "dbp", "members": "stratified", "bins": 5, "keep": 260}
        | CLUSTERS,
        PROTOTYPES | {"name": "balanced", "label": "kind", "per": "global", "keep": 200, "class_balance": 0.5},
        PROTOTYPES | CLUSTERS | {"name": "clusters", "difficulty": "margin", "target": target, "quantile": 0.1},
        PROTOTYPES | {"name": "classes", "label": "kind", "difficulty": "margin", "target": target, "quantile": 0.25},
    ]


@pytest.fixture(scope="module")
def done(pool, tmp_path_factory, ray_here):
    return curated(config(pool, tmp_path_factory.mktemp("workspace"), steps_of(pool)))


@pytest.mark.parametrize(("workers", "threads", "order"), [(7, 4, -1)])
def test_the_ledger_is_the_same_for_any_workers_threads_and_order(done, pool, tmp_path, workers, threads, order):
    tables = sorted((pool / "pool").glob("*.parquet"))[::order]
    sources = [{"format": "datacomp", "path": str(table), "root": str(pool / "pool")} for table in tables]
    changes = {"pool": {"sources": sources}, "resources": {"threads": threads}}
    other = curated(config(pool, tmp_path, steps_of(pool), **changes), workers)
    assert ledger_sha256(other.store) == ledger_sha256(done.store)


@pytest.fixture(scope="module")
def rows(done) -> dict[str, list[dict]]:
    """Step -> the rows that entered it: uid, x, label, kept, reason and its details."""
    run, config = open_run(done.store, workers=1, progress=Progress())
    names = ["unique_uid", *(step.title for step in config.steps)]
    found = defaultdict(list)
    for i, part in enumerate(run.samples.parts):
        samples = read_columns(run.store, part.path)
        uids = uid_rows(samples["uid"])
        x_ND = embeddings(read_columns(run.store, run.embeddings["raw", "image"].parts[i].path)["embedding"])
        kinds = [json.loads(text or "{}").get("kind") for text in samples["metadata"].to_pylist()]
        for before, name in itertools.pairwise(names):
            entered = booleans(read_columns(run.store, run.artifacts[before].parts[i].path)["kept"])
            verdicts = read_columns(run.store, run.artifacts[name].parts[i].path).to_pylist()
            for row in np.flatnonzero(entered):
                facts = {"uid": bytes(uids[row]), "x": x_ND[row].astype(np.float64), "kind": kinds[row]}
                verdict = verdicts[row]
                found[name].append(facts | verdict["detail"] | {n: verdict[n] for n in ("kept", "reason")})
    return found


def first(rows: list[dict], count: int) -> set[bytes]:
    """The uids of the rows of highest difficulty."""
    return {row["uid"] for row in sorted(rows, key=lambda row: (-row["difficulty"], row["uid"]))[:count]}


def kept(rows: list[dict]) -> set[bytes]:
    return {row["uid"] for row in rows if row["kept"]}


def by(rows: list[dict], name: str) -> dict:
    groups = defaultdict(list)
    for row in rows:
        groups[row[name]].append(row)
    return groups


def test_stratified_members_come_evenly_from_ranges_of_equal_width(rows):
    rows = rows["stratified"]
    assert len(kept(rows)) == 260
    for members in by(rows, "cluster").values():
        similarity = 1 - np.array([row["distance"] for row in members])
        ends = similarity.min(), similarity.max()
        bins = np.clip((similarity - ends[0]) / max(np.ptp(ends), 1e-300) * 5, 0, 4.999999).astype(int)
        assert [row["bin"] for row in members] == bins.tolist()
        sizes, stay = (np.bincount(bins[mask], minlength=5) for mask in (..., [row["kept"] for row in members]))
        assert stay.sum() == members[0]["quota"]
        assert [row["bin_quota"] for row in members] == stay[bins].tolist()
        assert (stay[sizes > stay] >= stay.max() - 1).all()  # only a bin that is used up keeps less


def test_the_hardest_of_all_stay_once_each_class_has_half_of_an_even_share(rows):
    rows = rows["balanced"]
    labelled = [row for row in rows if row["kind"] is not None]
    assert {row["reason"] for row in rows if row["kind"] is None} == {"no_label"}
    assert all(row["class"] == str(row["kind"]) for row in labelled)
    floor = 200 // 4 // 2
    safe = set().union(*(first(members, floor) for members in by(labelled, "class").values()))
    others = [row for row in labelled if row["uid"] not in safe]
    assert kept(rows) == safe | first(others, 200 - len(safe))
    counts, sizes = (Counter(row["class"] for row in some) for some in ([r for r in labelled if r["kept"]], labelled))
    assert all(counts[name] >= min(floor, sizes[name]) for name in sizes)
    assert all(row["quota"] == counts[row["class"]] for row in labelled)


def test_distances_to_the_class_means_of_the_pool(rows):
    for members in by(rows["balanced"], "kind").values():
        mean = np.sum([row["x"] for row in members], axis=0)
        for row in members if members[0]["kind"] is not None else []:
            assert row["difficulty"] == pytest.approx(1 - row["x"] @ mean / np.linalg.norm(mean), abs=1e-7)


def test_margins_to_the_clusters_of_a_target(rows, done):
    run, _ = open_run(done.store, workers=1, progress=Progress())
    path = next(file for file in run.store.find("clusters.distances") if file.endswith("prototypes.npz"))
    with np.load(io.BytesIO(run.store.read(path))) as arrays:
        centroids = arrays["vectors_PD"]
    rows = rows["clusters"]
    distances = cdist(np.stack([row["x"] for row in rows]), centroids)
    own = np.array([row["cluster"] for row in rows])
    np.testing.assert_array_equal(own, distances.argmin(axis=1))
    nearest = np.sort(distances)[:, :3]
    np.testing.assert_allclose([row["difficulty"] for row in rows], nearest @ [1, -1, -1], atol=1e-7)
    np.testing.assert_array_equal([row["other"] for row in rows], distances.argsort(axis=1)[:, 1])
    for members in by(rows, "cluster").values():
        assert kept(members) == first(members, len(members) - 1 - int(0.1 * (len(members) - 1)))


def test_margins_to_the_class_means_of_a_target(rows, done):
    rows = rows["classes"]
    assert {row["reason"] for row in rows if row["kind"] == "grey"} == {"unknown_label"}
    usable = [row for row in rows if row["class"] is not None]
    names = ["3", "green", "red"]
    run, _ = open_run(done.store, workers=1, progress=Progress())
    path = next(file for file in run.store.find("classes.distances") if file.endswith("prototypes.npz"))
    with np.load(io.BytesIO(run.store.read(path))) as arrays:
        assert json.loads(str(arrays["classes"])) == names
        distances = cdist(np.stack([row["x"] for row in usable]), arrays["vectors_PD"])
    for row, distance_P in zip(usable, distances, strict=True):
        own = names.index(row["class"])
        assert row["distance"] == pytest.approx(distance_P[own], abs=1e-9)
        assert row["difficulty"] == pytest.approx(2 * distance_P[own] - distance_P.sum(), abs=1e-9)
    for members in by(usable, "class").values():
        assert kept(members) == first(members, len(members) - 1 - int(0.25 * (len(members) - 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "colour"}, r"prune\.label must be a field .*, got 'colour', which no row has"),
        ({"label": "kind", "keep_fraction": 1.0}, r"at most the 27\d rows that have an embedding and a known label"),
        ({"label": "sort", "difficulty": "margin"}, r"two others, got 1 classes \(image\)"),
    ],
)
def test_what_only_the_run_can_know(pool, done, changes, message):
    settings = config(pool, Path(done.store.path()), [PROTOTYPES | changes])
    with pytest.raises(InputError, match=message):
        curated(settings)


def test_another_share_measures_nothing_again(done, pool):
    steps = steps_of(pool)[:2]
    before = {folder: set(done.store.find(folder)) for folder in ("stratified.clusters", "balanced.distances")}
    steps[1]["keep"] = 190
    other = curated(config(pool, Path(done.store.path()), steps))
    assert {folder: set(done.store.find(folder)) for folder in before} == before
    verdicts = pa.concat_tables(read_ledger(other.store))["verdict"].to_pylist()
    assert verdicts.count("kept") == 190
