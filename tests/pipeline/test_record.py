"""The record of a run, without a run: what is in it, and when it is refused."""

import json

import pytest

from operators.errors import WorkspaceError
from pipeline.artifact import Artifact, publish_manifest
from pipeline.curate import start_run
from pipeline.curation import Curation
from pipeline.embed import samples_folder, samples_id
from pipeline.listing import list_shards
from pipeline.parts import Part
from pipeline.progress import Progress
from pipeline.record import RECORD, open_run, write_record

SECRET = "hush"


@pytest.fixture
def record(tmp_path):
    """Records a run over two shards; returns its config."""

    def write(**storage):
        for name in ("a.tar", "b.tar"):
            (tmp_path / name).write_bytes(b"x")
        pool = {"format": "webdataset", "path": f"{tmp_path}/*.tar", "storage": storage}
        config = Curation.model_validate({"pool": pool, "workspace": str(tmp_path / "work")})
        shards = list_shards(config.pool)
        run = start_run(config, shards, workers=1, progress=Progress())
        parts = [Part(shard.name, samples_id(config.pool, shard), "", 0, 0, "") for shard in shards]
        samples = Artifact("samples", samples_folder(config.pool), tuple(parts))
        run.artifacts["samples"] = publish_manifest(run.store, samples, {})
        write_record(config, run)
        return config

    return write


def test_only_known_storage_options_are_recorded(tmp_path, record):
    public = {"endpoint_url": "http://store:9000", "config_kwargs": {"s3": {"addressing_style": "path"}}}
    storage = public | {
        "sas_token": SECRET,
        "auto_mkdir": False,
        "client_kwargs": {"endpoint_url": "http://other", "aws_secret_access_key": SECRET},
        "host": f"http://me:{SECRET}@store",
    }
    record(**storage)
    text = (tmp_path / "work" / RECORD).read_text()
    assert SECRET not in text
    recorded = json.loads(text)["config"]["pool"]["sources"][0]["storage"]
    assert recorded == public | {"client_kwargs": {"endpoint_url": "http://other"}, "host": None}


def test_a_shard_replaced_under_its_name_is_noticed(tmp_path, record):
    store = record().store
    run, _ = open_run(store, workers=1, progress=Progress())
    assert [part.shard for part in run.samples.parts] == ["a.tar", "b.tar"]
    (tmp_path / "b.tar").write_bytes(b"other")
    with pytest.raises(WorkspaceError, match=r"the 2 shards that its run read, got .* the first of them b\.tar: run"):
        open_run(store, workers=1, progress=Progress())


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_shard_that_came_or_went_is_noticed(tmp_path, record, change):
    store = record().store
    if change == "add":
        (tmp_path / "aa.tar").write_bytes(b"x")
    else:
        (tmp_path / "a.tar").unlink()
    with pytest.raises(WorkspaceError, match=rf"the first of them {'aa' if change == 'add' else 'a'}\.tar: run"):
        open_run(store, workers=1, progress=Progress())


def test_a_run_that_is_opened_embeds_in_a_decided_precision(record):
    models = {"tiny": {"library": "timm", "name": "vit_tiny_patch16_224", "weights": "random"}}
    config = Curation.model_validate(record().model_dump() | {"models": models, "resources": {"gpus": 1}})
    run, _ = open_run(config.store, workers=1, progress=Progress(), config=config)
    assert run.models["tiny"].precision == "bfloat16"
