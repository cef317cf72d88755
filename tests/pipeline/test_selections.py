"""Filters, image-based selection and intersections on Ray, over artifacts written by hand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.embeddings import to_unit_float16
from operators.errors import InputError
from operators.hashing import keyed_hash
from operators.selection import num_kept
from pipeline.artifact import Artifact, publish_part, read_columns
from pipeline.columns import embedding_field, fixed_binary
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.steps import groups
from pipeline.steps.clusters import fit_of
from pipeline.steps.registry import Filter, ImageBased, Intersection
from pipeline.storage import Store, digest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here", "small_actors")]

ROWS, DIM = 600, 8
SPLITS = [(1, 1, 0), (3, 1, 1), (7, 4, 2)]
"""(workers, threads, seed of the order of rows in shards)."""
SOURCE = {"format": "images", "path": "unused"}


@pytest.fixture
def small_actors(monkeypatch):
    """Up to four actors for a few rows: each takes more than a second to start."""
    monkeypatch.setattr("pipeline.run.ROWS_PER_ACTOR", 150)


@dataclass(frozen=True)
class Rows:
    """What the pool holds: N samples."""

    uids: list[bytes]
    scores: list[float | None]
    metadata: list[str]
    x_ND: np.ndarray


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(0.25, 0.05, ROWS), 2)  # many ties
    classes = rng.choice(["a", "b", "c", "d"], ROWS, p=[0.6, 0.3, 0.09, 0.01])
    centres = rng.normal(size=(6, DIM))
    x_ND, _ = to_unit_float16(centres[rng.integers(0, 6, ROWS)] + 0.3 * rng.normal(size=(ROWS, DIM)))
    return Rows(
        [rng.bytes(16) for _ in range(ROWS)],
        [None if i % 17 == 0 else float(score) for i, score in enumerate(scores)],
        [
            json.dumps({"size": i, "huge": 10**400} | ({"class": name} if i % 11 else {}))
            for i, name in enumerate(classes)
        ],
        x_ND,
    )


def publish(run: Run, name: str, tables: list[pa.Table], **info: Any) -> Artifact:
    """An artifact of one part a table."""
    parts = []
    for i, table in enumerate(tables):
        count = {"in": table.num_rows, "kept": table.num_rows}
        draft = Part(f"{i:05d}.tar", f"{i}", "", 0, 0, "", count)
        parts.append(publish_part(run.store, f"{name}/made", draft, [table], table.schema))
    run.artifacts[name] = Artifact(name, f"{name}/made", tuple(parts), info)
    return run.artifacts[name]


def embedded(x_ND: np.ndarray) -> pa.Table:
    """Embeddings, null where a row is all zeros."""
    return pa.table(
        [fixed_binary(x_ND, (x_ND != 0).any(axis=1))], schema=pa.schema([embedding_field("embedding", x_ND.shape[1])])
    )


def made_run(folder, rows: Rows, workers: int = 1, threads: int = 1, order: int = 0) -> Run:
    """A run over the rows, dealt to seven shards of unequal size in some order."""
    pool = Pool.model_validate({"format": "webdataset", "path": str(folder)})
    run = Run(Store(str(folder)), pool, [], 5, {}, workers=workers, threads=threads, progress=Progress())
    rng = np.random.default_rng(order)
    shards = np.split(rng.permutation(len(rows.uids)), np.sort(rng.integers(0, len(rows.uids), 6)))
    take = [shard.tolist() for shard in shards]
    schema = pa.schema({"uid": pa.binary(16), "metadata": pa.string()})
    tables = [pa.table([[column[i] for i in ids] for column in (rows.uids, rows.metadata)], schema) for ids in take]
    publish(run, "samples", tables)
    scores = [pa.table({"score": pa.array([rows.scores[i] for i in ids], pa.float64())}) for ids in take]
    publish(run, "alignment", scores, scored_by="a model")
    run.embeddings["raw", "image"] = publish(run, "raw.image", [embedded(rows.x_ND[ids]) for ids in take])
    return run


def verdicts(run: Run, artifact: Artifact) -> dict[bytes, dict[str, Any]]:
    """What became of each sample, by uid."""
    found = {}
    for samples, part in zip(run.samples.parts, artifact.parts, strict=True):
        uids = read_columns(run.store, samples.path, ["uid"])["uid"].to_pylist()
        found |= dict(zip(uids, read_columns(run.store, part.path).to_pylist(), strict=True))
    return found


def kept(found: Mapping[bytes, dict[str, Any]]) -> set[bytes]:
    return {uid for uid, row in found.items() if row["kept"]}


def estimating(**changes) -> Filter:
    return Filter(step="filter", score="alignment", keep_fraction=0.3, estimate_on=200, **changes)


@pytest.mark.parametrize("best", ["highest", "lowest"])
def test_an_estimated_threshold_is_that_of_the_drawn_rows_and_keeps_all_that_reach_it(tmp_path, rows, best):
    run = made_run(tmp_path, rows)
    artifact = estimating(best=best, confidence=0.9).run(run)
    found = verdicts(run, artifact)

    words = np.frombuffer(b"".join(rows.uids), ">u8").reshape(-1, 2).astype(np.uint64)
    drawn = np.argsort(keyed_hash(words[:, 0], words[:, 1], run.seed, "filter.subset"))[:200]
    sign = -1 if best == "highest" else 1
    values = sorted(sign * rows.scores[i] for i in drawn if rows.scores[i] is not None)
    threshold = sign * values[num_kept(0.3, 200) - 1]
    expected = {
        uid
        for uid, score in zip(rows.uids, rows.scores, strict=True)
        if score is not None and sign * score <= sign * threshold
    }
    assert kept(found) == expected
    assert artifact.info["threshold"] == threshold
    assert {row["detail"]["threshold"] for row in found.values()} == {threshold}

    stored = json.loads(run.store.read(artifact.info["threshold_file"]))
    assert stored == artifact.info["estimate"]
    facts = ("score", "scored_by", "best", "value", "keep_fraction", "subset", "rows", "confidence", "seed")
    assert [stored[name] for name in facts] == ["alignment", "a model", best, threshold, 0.3, 200, ROWS, 0.9, 5]
    assert stored["kept_share"] == len(expected) / ROWS
    low, high = stored["pool_interval"]
    assert low <= stored["kept_share"] <= high
    assert stored["source_interval"][0] < low
    assert high < stored["source_interval"][1]


def test_an_estimate_on_all_rows_is_exact_but_for_ties(tmp_path, rows):
    run = made_run(tmp_path, rows)
    artifact = estimating(name="all").model_copy(update={"estimate_on": 10**9}).run(run)
    threshold = sorted((score for score in rows.scores if score is not None), reverse=True)[179]
    assert artifact.info["threshold"] == threshold
    stored = artifact.info["estimate"]
    assert stored["subset"] == stored["rows"] == ROWS
    assert stored["pool_interval"] == [0.3, stored["kept_share"]]
    assert artifact.total("kept") == round(stored["kept_share"] * ROWS) > 180


def test_a_stored_threshold_judges_another_pool(tmp_path, rows):
    first = made_run(tmp_path / "first", rows)
    path = str(tmp_path / "first" / estimating().run(first).info["threshold_file"])
    other = made_run(tmp_path / "second", Rows(rows.uids[:100], rows.scores[:100], rows.metadata, rows.x_ND))
    step = Filter(step="filter", score="alignment", threshold={"file": path})
    artifact = step.run(other)
    value = artifact.info["threshold"]
    assert value == json.loads((tmp_path / "first" / path).read_text())["value"]
    expected = {uid for uid, score in zip(rows.uids[:100], rows.scores, strict=False) if score and score >= value}
    assert kept(verdicts(other, artifact)) == expected
    assert step.run(other).reused

    other.artifacts["alignment"] = replace(other.artifacts["alignment"], info={"scored_by": "another"})
    with pytest.raises(InputError, match=r"values that filter reads .* got one of a model"):
        step.run(other)
    told = Filter(step="filter", score="alignment", threshold={"file": path, "any_model": True})
    assert kept(verdicts(other, told.run(other))) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_fraction": 0.001}, "keep_fraction must be at least one of the 200 rows to estimate on, got 0.001"),
        ({"column": "huge", "score": None}, "the threshold of filter must be a finite number, got inf"),
        ({"keep_fraction": 1.0}, "must keep at most the rows with a value of 'alignment', got 200, which is more"),
    ],
)
def test_what_cannot_be_estimated(tmp_path, rows, settings, message):
    with pytest.raises(InputError, match=message):
        estimating().model_copy(update=settings).run(made_run(tmp_path, rows))


@pytest.mark.parametrize("target", [{"keep_fraction": 0.25}, {"keep": 7}])
def test_each_group_keeps_its_share(tmp_path, rows, target):
    run = made_run(tmp_path, rows)
    artifact = Filter(step="filter", score="alignment", per="class", **target).run(run)
    found = verdicts(run, artifact)
    members: dict[str, list[int]] = {}
    for i, metadata in enumerate(rows.metadata):
        members.setdefault(json.dumps(json.loads(metadata).get("class")), []).append(i)
    expected = set()
    for name, ids in members.items():
        quota = min(7, len(ids)) if "keep" in target else num_kept(0.25, len(ids))
        ranked = sorted((-rows.scores[i], rows.uids[i]) for i in ids if rows.scores[i] is not None)[:quota]
        expected |= {uid for _, uid in ranked}
        assert all(found[rows.uids[i]]["detail"]["group"] == name for i in ids)
    assert kept(found) == expected
    table = read_columns(run.store, artifact.info["groups"])
    assert dict(zip(table["group"].to_pylist(), table["rows"].to_pylist(), strict=True)) == {
        name: len(ids) for name, ids in members.items()
    }
    assert sum(table["quota"].to_pylist()) == len(expected)


def test_a_stratified_draw(tmp_path, rows):
    step = Filter(step="filter", draw=True, keep_fraction=0.5, per="class")
    run = made_run(tmp_path / "a", rows)
    found = verdicts(run, step.run(run))
    counts = {}
    for row in found.values():
        counts.setdefault(row["detail"]["group"], []).append(row["kept"])
    assert {name: sum(keeps) for name, keeps in counts.items()} == {
        name: num_kept(0.5, len(keeps)) for name, keeps in counts.items()
    }
    other = made_run(tmp_path / "seed", rows)
    other.seed = 6
    assert kept(verdicts(other, step.run(other))) != kept(found)


def test_too_many_groups(tmp_path, rows, monkeypatch):
    run = made_run(tmp_path, rows, workers=1)
    step = Filter(step="filter", score="alignment", per="size", keep=1)
    monkeypatch.setattr(groups, "MAX_GROUPS", ROWS - 1)  # of the driver; each worker finds fewer
    message = "filter.per must name a field of at most 599 different values, got 'size' with 600"
    with pytest.raises(InputError, match=message):
        step.run(run)


@pytest.fixture
def reference(monkeypatch):
    """Puts embeddings in the place of a reference set's."""

    def embed(x_ND):
        def embed_reference(run, sources, needs, key):
            other = Run(run.store, run.pool, [], 0, {}, 1, 1, Progress())
            tables = [embedded(part) for part in np.array_split(x_ND, 3)]
            other.embeddings["raw", "image"] = publish(other, f"reference-{digest(x_ND.tolist())}", tables)
            other.artifacts["samples"] = other.embeddings["raw", "image"]
            return other

        monkeypatch.setattr("pipeline.steps.image_based.embed_reference", embed_reference)

    return embed


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """A workspace in which tests find one another's clusters."""
    return tmp_path_factory.mktemp("clustered")


def fits(run: Run) -> list[str]:
    return [path for path in run.store.find("image_based.clusters") if path.endswith("fit.npz")]


def image_based(**changes) -> ImageBased:
    return ImageBased(step="image_based", model="raw", clusters=12, reference=[SOURCE], iterations=2, **changes)


def test_clusters_that_a_reference_falls_into_stay(clustered, rows, reference):
    x_RD = np.concatenate([rows.x_ND[:20], rows.x_ND[:20], np.zeros((5, DIM), np.float16)])
    reference(x_RD)
    run = made_run(clustered, rows)
    artifact = image_based(min_references=4).run(run)
    found = verdicts(run, artifact)
    table = read_columns(run.store, artifact.info["clusters"])
    fit = fit_of(run.store, {"fit": fits(run)[0]})
    nearest_R = (x_RD[:40].astype(np.float64) @ fit.centroids_KD.T).argmax(axis=1)
    assert table["references"].to_pylist() == np.bincount(nearest_R, minlength=12).tolist()
    assert artifact.info["references"] == 40
    assert artifact.info["reference"]["samples"] == 45
    nearest_N = (rows.x_ND.astype(np.float64) @ fit.centroids_KD.T).argmax(axis=1)
    assert table["size"].to_pylist() == np.bincount(nearest_N, minlength=12).tolist()
    for uid, near in zip(rows.uids, nearest_N.tolist(), strict=True):
        references = int((nearest_R == near).sum())
        reason = None if references >= 4 else "far_from_reference"
        assert found[uid] == {
            "kept": references >= 4,
            "reason": reason,
            "detail": {"cluster": near, "references": references},
        }
    assert 0 < len(kept(found)) < ROWS


def test_another_reference_set_is_another_selection_of_the_same_clusters(clustered, rows, reference):
    run = made_run(clustered, rows)
    reference(rows.x_ND[:1])
    few = image_based().run(run)
    assert image_based().run(run).reused
    reference(rows.x_ND[:30])
    many = image_based().run(run)
    assert not many.reused
    assert kept(verdicts(run, few)) < kept(verdicts(run, many))
    assert len(fits(run)) == 1  # however many reference sets


def test_a_reference_set_without_an_embedding(clustered, rows, reference):
    reference(np.zeros((4, DIM), np.float16))
    with pytest.raises(InputError, match="reference must hold at least one image that can be embedded, got none in 4"):
        image_based().run(made_run(clustered, rows))


def both() -> Intersection:
    best = {"step": "filter", "name": "best", "score": "alignment", "keep_fraction": 0.5}
    return Intersection(step="intersection", name="both", of=(best, image_based().model_dump()))


def test_an_intersection_keeps_what_each_keeps_alone(clustered, rows, reference):
    reference(rows.x_ND[:3])
    run = made_run(clustered, rows)
    artifact = both().run(run)
    found = verdicts(run, artifact)
    alone = {
        "best": verdicts(run, Filter(step="filter", score="alignment", keep_fraction=0.5).run(run)),
        "image_based": verdicts(run, image_based().run(run)),
    }
    assert kept(found) == kept(alone["best"]) & kept(alone["image_based"])
    assert artifact.info["alone"] == {name: len(kept(result)) for name, result in alone.items()}
    assert artifact.info["alone"]["best"] == ROWS // 2  # of all that entered, whatever the other keeps
    for uid, row in found.items():
        first = next((name for name, result in alone.items() if not result[uid]["kept"]), None)
        assert row["reason"] == (f"not_in_{first}" if first else None)
        for name, result in alone.items():
            assert row["detail"][name] == result[uid]["reason"]
            for key, value in result[uid]["detail"].items():
                assert row["detail"][f"{name}.{key}"] == value
    assert both().run(run).reused


def test_no_selection_depends_on_workers_threads_or_order(tmp_path, rows, reference):
    """All of them in an intersection, whose details hold what each of them said."""
    reference(rows.x_ND[:3])
    share = {"step": "filter", "keep_fraction": 0.6}
    steps = [
        share | {"name": "per", "score": "alignment", "per": "class"},
        share | {"name": "draw", "draw": True, "per": "class"},
        estimating(name="estimate").model_dump(),
        image_based().model_dump(),
    ]
    step = Intersection(step="intersection", of=tuple(steps))
    found = []
    for workers, threads, order in SPLITS:
        run = made_run(tmp_path / str(workers), rows, workers, threads, order)
        found.append(verdicts(run, step.run(run)))
    assert 0 < len(kept(found[0])) < ROWS
    assert found[0] == found[1] == found[2]
