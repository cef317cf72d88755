"""Whether a config may go on from a snapshot, and what it is given."""

import pytest

from operators.errors import ConfigError, WorkspaceError
from pipeline.artifact import Artifact, publish_manifest
from pipeline.curation import Curation
from pipeline.embed import samples_folder
from pipeline.nightly.state import (
    check_given,
    check_same,
    contents,
    find_given,
    identities,
    read_given,
    read_state,
    renewed,
)
from pipeline.parts import Part
from pipeline.record import recorded_settings
from pipeline.snapshots import publish_snapshot
from pipeline.storage import Store

STEPS = [
    {"step": "exact_dedup"},
    {"step": "semantic_dedup", "model": "raw", "clusters": 3, "epsilon": 0.01},
    {"step": "prune", "method": "dbp", "model": "raw", "clusters": 4, "keep_fraction": 0.6},
]


def curation(folder, **changed):
    base = {
        "pool": {"format": "webdataset", "path": f"{folder}/*.tar"},
        "workspace": f"{folder}/work",
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": STEPS,
    }
    return Curation.model_validate(base | changed)


@pytest.fixture
def snapshot(tmp_path):
    """The record of a night whose artifacts are mere manifests."""
    config = curation(tmp_path)
    places = {}
    for name in ("samples", "unique_uid", "exact_dedup", "semantic_dedup", "prune"):
        folder = samples_folder(config.pool) if name == "samples" else f"{name}/{'a' * 16}"
        part = Part("0.tar", "b" * 16, f"{folder}/{'b' * 16}/x.parquet", 1, 1, "")
        artifact = publish_manifest(config.store, Artifact(name, folder, (part,)), {})
        places[name] = {"folder": folder, "manifest": artifact.manifest}
    config.store.replace("prune.clusters/fit.npz", b"centroids")
    record = {
        "format_version": 1,
        "id": 3,
        "config": recorded_settings(config),
        "models": identities(config),
        "artifacts": places,
        "verdicts": ["unique_uid", "exact_dedup", "semantic_dedup", "prune"],
        "given": {"thresholds": {}, "fits": {"prune": "prune.clusters/fit.npz"}, "filters": {}},
    }
    publish_snapshot(config.store, record)
    return record


def test_exports_resources_and_places_may_differ(snapshot, tmp_path):
    export = [{"format": "uids", "path": "/elsewhere.npy"}]
    pool = {"format": "webdataset", "path": f"{tmp_path}/other/*.tar"}
    check_same(snapshot, curation(tmp_path, export=export, pool=pool, resources={"workers": 3}, workspace="/w"))


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"seed": 1}, "seed: 1, not 0"),
        ({"steps": STEPS[1:]}, "steps: semantic_dedup, prune, not exact_dedup, semantic_dedup, prune"),
        ({"steps": [*STEPS[:2], STEPS[2] | {"clusters": 5}]}, "steps.prune.clusters: 5, not 4"),
        ({"steps": [*STEPS[:2], STEPS[2] | {"temperature": 0.5}]}, "steps.prune.temperature: 0.5, not "),
        ({"models": {"raw": {"library": "pixels", "size": 16}}}, "models.raw: another model"),
        ({"pool": {"format": "webdataset", "path": "/*.tar", "max_pixels": 7}}, "pool.max_pixels: 7, not "),
    ],
)
def test_what_differs_is_named(snapshot, tmp_path, changed, found):
    with pytest.raises(ConfigError) as refused:
        check_same(snapshot, curation(tmp_path, **changed))
    assert f"as that of snapshot 3 did, got {found}" in str(refused.value)
    assert "begin anew with another workspace" in str(refused.value)


def test_lists_may_change_and_move_and_are_then_looked_at_again(snapshot, tmp_path):
    def denying(name):
        return curation(tmp_path, steps=[{"step": "deny", "uids": f"{tmp_path}/{name}"}, *STEPS])

    (tmp_path / "a.txt").write_text("ab" * 16)
    (tmp_path / "b.txt").write_text("# the same\n" + "AB" * 16)
    before, moved = denying("a.txt"), denying("b.txt")
    record = {**snapshot, "config": recorded_settings(before), "contents": contents(before)}
    check_same(record, moved)
    assert renewed(record, moved, contents(moved)) == []
    (tmp_path / "b.txt").write_text("cd" * 16)
    check_same(record, moved)
    assert renewed(record, moved, contents(moved)) == ["deny"]


def test_what_else_is_named_must_hold_what_it_held(snapshot, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "named_by_a_night.py").write_text("def sound(table): return [True] * len(table)\n")
    python = {"step": "python", "name": "own", "function": "named_by_a_night:sound"}
    config = curation(tmp_path, steps=[python, *STEPS])
    record = {**snapshot, "config": recorded_settings(config), "contents": contents(config)}
    check_same(record, config)
    monkeypatch.setattr("pipeline.steps.python._source", lambda function: "def sound(table): ...")
    with pytest.raises(ConfigError, match=r"got steps\.own\.function: another content than it had then: set this back"):
        check_same(record, config)


def test_another_precision_is_said_to_be_one(snapshot, tmp_path):
    models = {"raw": {"library": "timm", "name": "vit_tiny_patch16_224", "weights": "random"}}
    record = {**snapshot, "models": identities(curation(tmp_path, models=models, resources={"gpus": 0}))}
    check_same(record, curation(tmp_path, models=models, resources={"gpus": 0, "workers": 3}))
    with pytest.raises(
        ConfigError, match=r"got models\.raw\.precision: bfloat16, not float32 .*precision to float32\)"
    ):
        check_same(record, curation(tmp_path, models=models, resources={"gpus": 8}))


def test_the_policy_decides_what_stands(snapshot, tmp_path):
    config = curation(tmp_path)
    _, standing = read_state(config.store, snapshot, config, "append")
    assert list(standing.verdicts) == ["unique_uid", "exact_dedup", "semantic_dedup", "prune"]
    _, standing = read_state(config.store, snapshot, config, "rebalance")
    assert list(standing.verdicts) == ["unique_uid", "exact_dedup", "semantic_dedup"]


def test_what_is_given_comes_into_the_workspace(snapshot, tmp_path):
    config = curation(tmp_path, workspace=f"{tmp_path}/fresh")
    given, standing = read_state(Store(f"{tmp_path}/work"), snapshot, config, "rebalance")
    assert config.store.read(given.fits["prune"]) == b"centroids"
    assert standing.store.url == f"{tmp_path}/work"


def test_a_dry_run_brings_nothing_along(snapshot, tmp_path):
    given = {"workspace": f"{tmp_path}/work", "snapshot": 3}
    config = curation(tmp_path, workspace=f"{tmp_path}/fresh", given=given)
    assert find_given(config) == (None, None)
    assert config.store.find("") == {}
    brought = read_given(config)
    assert brought[0].fits == {"prune": "prune.clusters/fit.npz"}
    assert find_given(config) == brought


def test_a_given_snapshot_is_one_of_the_same_settings(snapshot, tmp_path):
    given = {"workspace": f"{tmp_path}/work", "snapshot": 3}

    def check(**changed):
        config = curation(tmp_path, workspace=f"{tmp_path}/fresh", **{"given": given, **changed})
        return check_given(config, config.given)

    assert check()["id"] == 3
    with pytest.raises(
        ConfigError, match=r"snapshot 3 of .*work that is given must be those of this config, got steps"
    ):
        check(steps=[*STEPS[:2], STEPS[2] | {"clusters": 5}])
    with pytest.raises(WorkspaceError, match=r"there: 1 to 3\), got 4"):
        check(given=given | {"snapshot": 4})
