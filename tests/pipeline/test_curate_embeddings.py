"""Curations of pools of embeddings, and what they write, read again."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from operators.embeddings import to_unit_float16
from operators.errors import ConfigError, InputError
from pipeline.artifact import read_columns
from pipeline.columns import embeddings, present
from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.export.run import export
from pipeline.export.settings import WebdatasetExport
from pipeline.ledger import read_ledger
from pipeline.listing import list_shards
from pipeline.pool import Pool, Source
from pipeline.progress import Progress
from pipeline.readers import read_shard
from pipeline.record import open_run
from pipeline.references import embed_reference, reference_facts
from tests.embedding_pools import table, uid, unit_rows, write_clip_retrieval, write_datacomp

CLIP = {"library": "stored", "image": "img_emb", "text": "text_emb"}
ROWS = 40

pytestmark = pytest.mark.ray


def config(folder, pool, steps, **more):
    pool = {"max_reject_fraction": 1, **pool}
    return Curation.model_validate({"pool": pool, "workspace": f"{folder}/work", "steps": steps, **more})


def run_it(settings, workers=2):
    return curate(settings, check(settings), workers=workers, progress=Progress())


def rows_of(settings):
    return {row["uid"]: row for part in read_ledger(settings.store) for row in part.to_pylist()}


def vectors_of(pool, *arrays):
    """Uid -> its vectors, read back from files."""
    pool = Pool.model_validate(pool)
    samples = [s for shard in list_shards(pool) for s in list(read_shard(pool, shard, arrays=arrays))[:-1]]
    return {s.uid.hex(): {name: row.tobytes() for name, row in s.vectors.items()} for s in samples}


@pytest.fixture(scope="module")
def curated(tmp_path_factory, ray_here):
    folder = tmp_path_factory.mktemp("embeddings")
    images, texts = unit_rows(ROWS), unit_rows(ROWS, seed=1)
    images[3], images[4], images[5] = np.nan, 0.0, np.inf
    texts[6] = 0.0
    write_clip_retrieval(folder / "pool", [images[:25], images[25:]], [texts[:25], texts[25:]])
    settings = config(
        folder,
        {"format": "clip_retrieval", "path": f"{folder}/pool"},
        [
            {"step": "score", "name": "alignment", "model": "clip"},
            {"step": "filter", "score": "alignment", "keep": 30},
            {"step": "prune", "method": "dbp", "model": "clip", "clusters": 3, "keep": 20},
        ],
        models={"clip": CLIP},
        export=[
            {"format": "clip_retrieval", "path": f"{folder}/cr", "model": "clip", "rows_per_file": 12},
            {"format": "semdedup", "path": f"{folder}/sd", "model": "clip", "step": "prune"},
            {"format": "uids", "path": f"{folder}/uids.npy"},
            {"format": "parquet", "path": f"{folder}/tables"},
            {"format": "keys", "path": f"{folder}/keys.parquet"},
        ],
    )
    return folder, settings, run_it(settings), images, texts


def test_each_row_has_its_reason(curated):
    _, settings, summary, _, _ = curated
    assert (summary.samples_seen, summary.kept) == (ROWS, 20)
    assert summary.rejected == {"bad_embedding": 3}
    rows = rows_of(settings)
    assert {rows[uid(i)]["reason"] for i in (3, 4, 5)} == {"bad_embedding"}
    assert (rows[uid(6)]["step"], rows[uid(6)]["reason"]) == ("filter", "no_value")


def test_scores_are_those_of_the_stored_rows(curated):
    _, settings, _, images, texts = curated
    run, _ = open_run(settings.store, workers=1, progress=Progress())
    image_ND, _ = to_unit_float16(np.delete(images, [3, 4, 5, 6], axis=0))
    text_ND, _ = to_unit_float16(np.delete(texts, [3, 4, 5, 6], axis=0))
    expected = (image_ND.astype(float) * text_ND.astype(float)).sum(axis=1)
    parts = run.artifacts["alignment"].parts
    found = np.concatenate([read_columns(run.store, p.path)["score"].drop_null().to_numpy() for p in parts])
    np.testing.assert_array_equal(found, expected)


def test_samples_have_no_image_and_keep_their_caption(curated):
    _, settings, _, _, _ = curated
    run, _ = open_run(settings.store, workers=1, progress=Progress())
    row = read_columns(run.store, run.samples.parts[0].path).to_pylist()[7]
    assert (row["bytes"], row["width"], row["image_hash"], row["ext"]) == (0, None, None, None)
    assert (row["caption"], row["uid"].hex()) == ("text 7", uid(7))


def test_a_second_run_does_nothing(curated, ray_here):
    _, settings, summary, _, _ = curated
    again = run_it(settings, workers=1)
    assert again.reused
    assert again.kept == summary.kept


def test_clip_retrieval_is_read_as_it_was_written(curated):
    folder, settings, _, images, texts = curated
    kept = [key for key, row in rows_of(settings).items() if row["verdict"] == "kept"]
    found = vectors_of({"format": "clip_retrieval", "path": f"{folder}/cr"}, "text_emb")
    assert sorted(found) == sorted(kept)
    assert sorted(path.name for path in (folder / "cr/img_emb").iterdir()) == ["img_emb_0.npy", "img_emb_1.npy"]
    for key, vectors in found.items():
        for name, x_ND in (("img_emb", images), ("text_emb", texts)):
            assert vectors[name] == to_unit_float16(x_ND[int(key, 16)][None])[0].tobytes()


def test_a_pool_of_an_export_gives_the_same_embeddings(curated, ray_here, tmp_path):
    folder, _, summary, _, _ = curated
    settings = config(
        tmp_path,
        {"format": "clip_retrieval", "path": f"{folder}/cr"},
        [],
        models={"clip": CLIP},
        export=[{"format": "clip_retrieval", "path": f"{tmp_path}/again", "model": "clip", "rows_per_file": 12}],
    )
    assert run_it(settings).kept == summary.kept
    for name in ("img_emb/img_emb_0.npy", "img_emb/img_emb_1.npy", "text_emb/text_emb_0.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "cr" / name).read_bytes()


def test_sorted_clusters_stand_farthest_first_and_point_to_their_rows(curated):
    folder, settings, _, images, _ = curated
    rows = rows_of(settings)
    x_ND, paths = np.load(folder / "sd/embeddings.npy"), np.load(folder / "sd/paths.npy")
    assert x_ND.dtype == np.float16
    seen = []
    for i in range(3):
        cluster = np.load(folder / f"sd/sorted_clusters/cluster_{i}.npy")
        assert cluster.shape[1] == 4
        distances = cluster[:, 2].astype(float)
        assert (np.diff(distances) <= 0).all()
        for path, row, distance, number in cluster.tolist():
            assert (paths[int(row)], int(number)) == (path, i)
            detail = json.loads(rows[path]["detail"])["prune"]
            assert (detail["cluster"], detail["distance"]) == (i, float(distance))
            np.testing.assert_array_equal(x_ND[int(row)], to_unit_float16(images[int(path, 16)][None])[0][0])
            seen.append(path)
    assert sorted(seen) == sorted(key for key, row in rows.items() if row["verdict"] == "kept")


def test_both_forms_of_semdedup_are_read_as_they_were_written(curated):
    folder, _, _, _, _ = curated
    expected = {
        key: {"embeddings": vectors["img_emb"]}
        for key, vectors in vectors_of({"format": "clip_retrieval", "path": f"{folder}/cr"}).items()
    }
    assert vectors_of({"format": "semdedup", "path": f"{folder}/sd"}) == expected
    assert vectors_of({"format": "semdedup", "path": f"{folder}/sd/embeddings.npy", "shard_size": 7}) == expected


def test_other_exports_need_no_images(curated):
    folder, _, summary, _, _ = curated
    assert [made.samples for made in summary.exports] == [20] * 5
    assert len(np.load(folder / "uids.npy")) == 20
    assert pq.read_table(folder / "tables")["alignment"].null_count == 0


def test_the_report_shows_captions(curated):
    folder, _, _, _, _ = curated
    page = (folder / "work/report.html").read_text()
    assert "text 3" in page
    assert "data:image/webp" not in page


def test_images_cannot_be_exported(curated, ray_here):
    folder, settings, _, _, _ = curated
    run, _ = open_run(settings.store, workers=1, progress=Progress())
    with pytest.raises(ConfigError, match="without images for a pool of embeddings, got webdataset"):
        export(run, WebdatasetExport(format="webdataset", path=f"{folder}/tars"))


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_the_same_answer_for_any_number_of_workers_and_files(curated, ray_here, tmp_path, workers):
    _, settings, _, images, texts = curated
    cuts = [5, 6, 31][: workers // 2]
    write_clip_retrieval(tmp_path / "pool", np.split(images, cuts), np.split(texts, cuts))
    again = config(
        tmp_path,
        {"format": "clip_retrieval", "path": f"{tmp_path}/pool"},
        settings.model_dump(mode="json")["steps"],
        models={"clip": CLIP},
        report=False,
    )
    run_it(again, workers)
    facts = ("verdict", "step", "reason", "detail")
    found, expected = rows_of(again), rows_of(settings)
    assert {key: [row[fact] for fact in facts] for key, row in found.items()} == {
        key: [row[fact] for fact in facts] for key, row in expected.items()
    }


def test_datacomp_scores_filter_and_a_later_step_embeds_the_rest(ray_here, tmp_path):
    for i in range(3):
        scores = [None if row == 2 else round(0.01 * (row + 10 * i), 2) for row in range(10)]
        rows = table(10 * i, 10, clip_l14_similarity_score=pa.array(scores, pa.float32()), original_width=[7] * 10)
        rows = rows.append_column("original_height", pa.array([0] * 5 + [9] * 5))
        features = {"l14_img": unit_rows(10, seed=i).astype(np.float16), "l14_txt": unit_rows(10, 4, seed=9)}
        write_datacomp(tmp_path / "pool", f"{i}", rows, **features)
    settings = config(
        tmp_path,
        {"format": "datacomp", "path": f"{tmp_path}/pool"},
        [
            {"step": "filter", "column": "clip_l14_similarity_score", "keep_fraction": 0.5},
            {"step": "prune", "method": "cluster_balanced", "model": "l14", "clusters": 2, "keep": 6},
        ],
        models={"l14": {"library": "stored", "image": "l14_img"}},
    )
    summary = run_it(settings)
    assert summary.dropped["filter"] == {"below_cutoff": 12, "no_value": 3}
    assert summary.kept == 6
    rows = rows_of(settings)
    assert {rows[uid(i)]["reason"] for i in (2, 12, 22)} == {"no_value"}
    run, _ = open_run(settings.store, workers=1, progress=Progress())
    embedded = [present(read_columns(run.store, part.path)["embedding"]) for part in run.artifacts["l14.image"].parts]
    assert [int(part.sum()) for part in embedded] == [0, 6, 9]
    assert list(np.flatnonzero(embedded[1])) == [4, 5, 6, 7, 8, 9]
    last = embeddings(read_columns(run.store, run.artifacts["l14.image"].parts[2].path)["embedding"])
    np.testing.assert_array_equal(last, np.delete(unit_rows(10, seed=2).astype(np.float16), 2, axis=0))
    widths = read_columns(run.store, run.samples.parts[0].path)
    assert (widths["width"].to_pylist()[4:6], widths["height"].to_pylist()[4:6]) == ([None, 7], [None, 9])


def test_another_width_is_no_embedding(ray_here, tmp_path):
    write_clip_retrieval(tmp_path / "pool", [unit_rows(6), unit_rows(4, dim=3)])
    steps = [{"step": "prune", "method": "cluster_balanced", "model": "clip", "clusters": 2, "keep": 3}]
    model = {"library": "stored", "image": "img_emb"}
    settings = config(tmp_path, {"format": "clip_retrieval", "path": f"{tmp_path}/pool"}, steps, models={"clip": model})
    assert run_it(settings).dropped == {"prune": {"no_embedding": 4, "over_quota": 3}}


def test_a_damaged_shard_costs_its_rows(ray_here, tmp_path):
    write_clip_retrieval(tmp_path / "pool", [unit_rows(6), unit_rows(4)])
    np.save(tmp_path / "pool/img_emb/img_emb_0.npy", unit_rows(5))
    settings = config(
        tmp_path,
        {"format": "clip_retrieval", "path": f"{tmp_path}/pool"},
        [{"step": "prune", "method": "cluster_balanced", "model": "clip", "clusters": 2, "keep": 3}],
        models={"clip": {"library": "stored", "image": "img_emb"}},
    )
    summary = run_it(settings)
    assert (summary.samples_seen, summary.kept) == (4, 3)
    damage = {"reason": "unreadable", "message": "arrays must have the table's 6 rows, got img_emb 5"}
    assert summary.shards_damaged == {"metadata/metadata_0.parquet": damage}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (
            {"models": {"clip": {"library": "pixels"}}},
            "must be library stored for a pool of embeddings, got library pixels",
        ),
        ({"pool": {"format": "images", "path": "x"}}, "must be used with a pool of embeddings, got library stored"),
        ({"models": {"clip": {"library": "stored"}}}, "needs at least one of image and text"),
        ({"models": {"clip": {"library": "stored", "text": "t"}}}, "must name a model that names its image array"),
        (
            {"export": [{"format": "webdataset", "path": "x"}]},
            "must be a format without images for a pool of embeddings",
        ),
        (
            {"export": [{"format": "clip_retrieval", "path": "x", "model": "dino"}]},
            "must name a model that embeds images",
        ),
        ({"export": [{"format": "semdedup", "path": "x", "model": "clip", "step": "p"}]}, "must name one of the steps"),
        ({"steps": [{"step": "exact_dedup"}]}, "must be semantic_dedup for a pool of embeddings"),
        (
            {"steps": [{"step": "intersection", "of": [{"step": "rules", "min_side": 1}, {"step": "exact_dedup"}]}]},
            "must be semantic_dedup for a pool of embeddings",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(changes, rule):
    base = {
        "pool": {"format": "clip_retrieval", "path": "x"},
        "workspace": "w",
        "models": {"clip": {"library": "stored", "image": "img_emb"}},
        "steps": [{"step": "prune", "method": "cluster_balanced", "model": "clip", "clusters": 2, "keep": 3}],
    }
    Curation.model_validate(base)
    with pytest.raises(ValidationError, match=rule):
        Curation.model_validate(base | changes)


def test_an_array_that_is_not_there_is_refused_before_any_work(tmp_path):
    write_clip_retrieval(tmp_path / "pool", [unit_rows(2)])
    settings = config(tmp_path, {"format": "clip_retrieval", "path": f"{tmp_path}/pool"}, [], models={"clip": CLIP})
    rule = r"models.clip.text must be an array of the pool \(img_emb\), got 'text_emb'"
    with pytest.raises(InputError, match=rule):
        check(settings)


def test_relative_paths_are_resolved(tmp_path):
    settings = config(tmp_path, {"format": "semdedup", "path": "a.npy", "paths_path": "b.npy"}, [])
    (source,) = settings.resolved().pool.sources
    assert source.path.startswith("/")
    assert source.paths_path.startswith("/")


def test_a_reference_set_of_images_does_not_fit_stored_embeddings(curated, tmp_path):
    folder, settings, _, _, _ = curated
    run, _ = open_run(settings.store, workers=1, progress=Progress())
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"models.clip must be used with a pool of embeddings, got library stored"):
        embed_reference(run, [Source(format="images", path=str(tmp_path))], [("clip", "image")], "step.against")
    source = Source(format="clip_retrieval", path=f"{folder}/cr")
    reference = embed_reference(run, [source], [("clip", "image")], "step.against")
    assert reference_facts(reference) == {"samples": 20, "compared": 20, "rejected": {}, "damaged": {}}
