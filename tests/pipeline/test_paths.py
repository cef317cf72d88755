"""How files are opened that a config names: as it says there, or else as the workspace is."""

import pickle

import pytest

from operators.encoders.settings import TimmSettings
from pipeline.comparison.settings import Comparison
from pipeline.comparison.trainings import models
from pipeline.config.loader import canonical
from pipeline.curation import Curation
from pipeline.evaluation.settings import Evaluation
from pipeline.training.settings import Training
from pipeline.training.trainer import TrainingResult

STORAGE = {"endpoint_url": "http://127.0.0.1:1", "key": "a-secret-of-the-test"}
OWN = {"anon": True}
POOL = {"format": "webdataset", "path": "s3://b/*.tar"}
TIMM = {"library": "timm", "name": "resnet18", "weights": "s3://b/w.safetensors"}
CLIP = TIMM | {"library": "open_clip"}
FILTER = {"step": "filter", "column": "bytes", "threshold": {"file": "s3://b/threshold.json"}}
DENY = {"step": "deny", "uids": "s3://b/uids.txt"}
LEARNED = {"step": "binary_embeddings", "model": "timm", "trained": "s3://b/filter.safetensors"}
STEPS = [{"step": "intersection", "of": [FILTER, DENY]}, LEARNED]
TASK = {"task": "classification", "name": "t", "data": POOL, "classes": "s3://b/classes.txt"}
TOWERS = {"name": "s3://b/towers.json"}
RECIPE = {"model": TOWERS, "samples_seen": 16, "batch_size": 16}


def curation(workspace: str = "s3://b/w", model: dict = TIMM, **more) -> Curation:
    """A curation that names files of all kinds."""
    config = {"pool": POOL, "workspace": workspace, "storage": STORAGE, "models": {"timm": model}, "steps": STEPS}
    return Curation.model_validate(config | more)


def test_files_are_opened_as_the_workspace_is():
    config = curation()
    both, learned = config.steps
    named = [config.models["timm"], both.of[0].threshold, both.of[1], learned]
    assert [each.storage for each in named] == [STORAGE] * 4
    assert config.pool.sources[0].storage == {}, "a pool has its own"
    place = {"workspace": "s3://b/w", "storage": STORAGE}
    evaluation = Evaluation.model_validate({**place, "models": {"m": CLIP}, "tasks": [TASK]})
    assert [evaluation.models["m"].storage, evaluation.tasks[0].storage] == [STORAGE] * 2
    captions = {"field": "cls", "classes": "s3://b/classes.txt"}
    training = Training.model_validate({**place, **RECIPE, "data": [{"pool": POOL, "captions": captions}]})
    assert [training.model.storage, training.data[0].captions.storage] == [STORAGE] * 2
    assert training.model.as_encoder(0).storage == STORAGE


def test_a_comparison_opens_what_it_trained_as_its_workspace():
    towers = {"name": "s3://b/towers.json", "storage": OWN}
    place = {"workspace": "s3://b/w", "storage": STORAGE, "pool": POOL}
    selections = {"all": [], "some": STEPS[:1]}
    recipe = {**RECIPE, "model": towers}
    config = Comparison.model_validate({**place, "selections": selections, "training": recipe, "evaluation": [TASK]})
    assert config.curation("some").steps[0].of[1].storage == STORAGE
    result = TrainingResult("s3://b/w/training/all/0/model", "", 1, 0, 1, 1, 1.0, 1.0, 0.0, 1.0)
    assert config.training.model.storage == OWN
    assert models(config, {("all", 0): result})["all", 0].storage == STORAGE


@pytest.mark.parametrize(
    ("config", "storage"),
    [
        (curation(model=TIMM | {"storage": OWN}), OWN),
        (curation(model=TIMM | {"weights": "gs://b/w"}), None),
        (curation(model=TIMM | {"weights": "random"}), None),
        (curation(workspace="/w"), None),
        (curation(storage={}), None),
    ],
)
def test_unless_they_have_options_of_their_own_or_lie_elsewhere(config, storage):
    assert config.models["timm"].storage == storage


def test_options_are_in_no_record_and_no_address():
    config = curation()
    shown = str(canonical(config)["models"]) + str(canonical(config)["steps"]) + repr(config)
    assert STORAGE["key"] not in shown
    assert "storage" not in config.models["timm"].model_dump()
    assert "storage" not in config.steps[1].model_dump()
    one, other = (TimmSettings.model_validate(TIMM | more) for more in ({}, {"storage": OWN}))
    assert one != other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(other)).storage == OWN  # noqa: S301 (our own object)
