"""The config of a curation, beyond what tests/jobs/test_bad_input.py shows of its messages."""

import pytest
from pydantic import ValidationError

from pipeline.clustering import KMeansSettings
from pipeline.curate import curate
from pipeline.curation import Curation
from pipeline.progress import Progress
from pipeline.steps.prune import DensityPrune

POOL = {"format": "webdataset", "path": "pool/*.tar"}
PRUNE = {"step": "prune", "method": "dbp", "model": "raw", "clusters": 2, "keep": 1}


def curation(**changes) -> Curation:
    return Curation.model_validate({"pool": POOL, "workspace": "w"} | changes)


@pytest.mark.parametrize(("tolerance", "iterations"), [(1.0, 20), (float("inf"), 20), (-0.1, 20), (0.0, -1)])
def test_prune_takes_what_k_means_takes(tolerance, iterations):
    changes = {"tolerance": tolerance, "iterations": iterations}
    with pytest.raises(ValidationError):
        KMeansSettings(clusters=2, **changes)
    with pytest.raises(ValidationError):
        DensityPrune.model_validate(PRUNE | changes)


@pytest.mark.parametrize("name", ["width", "caption", "uid", "exports", "ledger"])
def test_names_of_columns_and_folders_are_reserved(name):
    with pytest.raises(ValidationError, match="is reserved"):
        curation(steps=[{"step": "exact_dedup", "name": name}])


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden"])
def test_model_names_are_fit_for_folders(name):
    with pytest.raises(ValidationError, match="pattern"):
        curation(models={name: {"library": "pixels"}})
    assert curation(models={"vit_b-32": {"library": "pixels"}}).models


def test_paths_become_absolute_and_nothing_else_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    clip = {"library": "open_clip", "name": "ViT-B-32", "weights": "openai"}
    sources = [
        POOL | {"root": "."},
        {"format": "idx", "path": "~/digits", "labels_path": "labels", "name": "digits"},
        {"format": "parquet", "path": "s3://bucket/*.parquet", "name": "far"},
    ]
    given = curation(
        pool={"sources": sources},
        models={
            "tag": clip,
            "hub": clip | {"name": "hf-hub:owner/repo", "weights": "hub"},
            "random": clip | {"name": "small.json", "weights": "random"},
            "file": {"library": "timm", "name": "vit_tiny_patch16_224", "weights": "vit.safetensors"},
            "folder": clip | {"weights": "./exported"},
            "far": clip | {"weights": "s3://bucket/clip.safetensors"},
            "raw": {"library": "pixels"},
        },
        steps=[{"step": "deny", "uids": "lists/out.txt", "urls": "https://host/urls.txt"}, {"step": "exact_dedup"}],
        export=[{"format": "uids", "path": "out/subset.npy"}],
    )
    found = given.resolved()

    here = str(tmp_path)
    assert found.store == given.store
    assert found.workspace == f"{here}/w"
    assert [(source.path, source.root, source.labels_path) for source in found.pool.sources] == [
        (f"{here}/pool/*.tar", here, None),
        ("/home/someone/digits", None, f"{here}/labels"),
        ("s3://bucket/*.parquet", None, None),
    ]
    models = {name: (model.name, model.weights) for name, model in found.models.items() if name != "raw"}
    assert models == {
        "tag": ("ViT-B-32", "openai"),
        "hub": ("hf-hub:owner/repo", "hub"),
        "random": (f"{here}/small.json", "random"),
        "file": ("vit_tiny_patch16_224", f"{here}/vit.safetensors"),
        "folder": ("ViT-B-32", f"{here}/exported"),
        "far": ("ViT-B-32", "s3://bucket/clip.safetensors"),
    }
    assert (found.steps[0].uids, found.steps[0].urls) == (f"{here}/lists/out.txt", "https://host/urls.txt")
    assert found.export[0].path == f"{here}/out/subset.npy"
    monkeypatch.chdir("/")
    assert found.resolved() == found


def test_a_run_knows_only_absolute_paths(monkeypatch, tmp_path):
    class Started(Exception):
        pass

    def start_run(config, *args, **kwargs):
        raise Started(config)

    monkeypatch.setattr("pipeline.curate.start_run", start_run)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Started) as started:
        curate(curation(), [], workers=1, progress=Progress())
    assert started.value.args[0] == curation().resolved() != curation()


RAW = {"raw": {"library": "pixels"}}
SEMDEDUP = {"format": "semdedup", "path": "out", "model": "raw"}
LABELLED = {"step": "prune", "method": "prototypes", "model": "raw", "name": "labelled", "label": "k"}
CLUSTERING = [
    {"step": "rules", "min_side": 1},
    {"step": "sweep", "model": "raw", "clusters": [2, 4]},
    PRUNE,
    LABELLED,
    LABELLED | {"name": "own", "label": None, "clusters": 3},
    LABELLED | {"name": "target", "label": None, "clusters": 3, "target": {"format": "images", "path": "t"}},
    {
        "step": "intersection",
        "name": "both",
        "of": [{"step": "rules", "min_side": 1}, {"step": "semantic_dedup", "model": "raw", "epsilon": 0.1}],
    },
]


@pytest.mark.parametrize("name", ["sweep.k2", "sweep.k4", "prune", "own", "both.semantic_dedup"])
def test_an_export_of_clusters_names_a_clustering_of_the_pool(name):
    assert curation(models=RAW, steps=CLUSTERING, export=[SEMDEDUP | {"step": name}]).export[0].step == name


@pytest.mark.parametrize("name", ["rules", "sweep", "labelled", "target", "both", "nothing"])
def test_what_clusters_nothing_is_refused_before_any_work(name):
    with pytest.raises(ValidationError) as caught:
        curation(models=RAW, steps=CLUSTERING, export=[SEMDEDUP | {"step": name}])
    problem = caught.value.errors()[0]["ctx"]["error"]
    assert problem.path == ("export", 0, "step")
    known = "sweep.k2, sweep.k4, prune, own, both.semantic_dedup"
    assert problem.rule == f"must name one of the steps that cluster the pool ({known}), got {name!r}"


SECRET_URL = "ftp://user:hunter2@host/folder"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"workspace": SECRET_URL}, ("workspace",)),
        ({"export": [{"format": "keys", "path": SECRET_URL}]}, ("export", 0, "path")),
        (
            {"models": {"m": {"library": "timm", "name": "vit_tiny_patch16_224", "weights": SECRET_URL}}},
            ("models", "m", "weights"),
        ),
    ],
)
def test_a_url_with_a_password_is_refused_without_repeating_it(changes, key):
    with pytest.raises(ValidationError) as caught:
        curation(**changes)
    problem = caught.value.errors()[0]["ctx"]["error"]
    assert problem.path == key
    assert "must not hold a password" in problem.rule
    assert "hunter2" not in problem.rule
