"""A training's loop in this process, without Ray: on hands of random pairs, as one worker of a group of one."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip

from operators.errors import TrainingDiverged, WinnowError, WorkspaceError
from operators.training.losses import clip_loss
from pipeline.storage import Store
from pipeline.training import batches, loop
from pipeline.training.dealing import Hand
from pipeline.training.finished import read_origin
from pipeline.training.loop import LOSSES, Job, explain
from pipeline.training.settings import Training

TOWERS = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2},
}
NORMED = {
    **TOWERS,
    "vision_cfg": {
        "timm_model_name": "test_resnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
}
STEPS, BATCH = 6, 8


def hand(step: int, size: int) -> Hand:
    draws = np.random.default_rng(step % 2)  # two batches, over and over
    pixels = draws.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    tokens = draws.integers(1, 400, (BATCH, 8), dtype=np.int32)
    return Hand(pixels, tokens, np.arange(2 * BATCH, dtype=np.uint64).reshape(BATCH, 2))


class Dealer:
    """Deals a batch at a time, and takes note of a failure, as feeder and monitor do."""

    def __init__(self, size: int) -> None:
        self.size, self.records, self.first, self.failed = size, [], 0, None

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self, f"_{name}"))

    def _start(self, workers: int, first_step: int) -> int:
        self.first = first_step
        return 1

    def _take(self, attempt: int, rank: int, number: int) -> list[Hand]:
        return [hand(self.first + number, self.size)]

    def _begin(self, samples_seen: int) -> None:
        pass

    def _log(self, record: dict) -> None:
        self.records.append(record)

    def _failure(self) -> WinnowError | None:
        return self.failed

    def _fail(self, failure: WinnowError) -> None:
        self.failed = failure


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """A group of one, and a Ray whose references are what they refer to."""
    here = SimpleNamespace(get=lambda value: value, exceptions=loop.ray.exceptions)
    monkeypatch.setattr(loop, "ray", here)
    monkeypatch.setattr(batches, "ray", here)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def job(tmp_path):
    """A function that makes a job of a config with changes, from saved weights."""

    def make(towers=TOWERS, workspace="w", **changes) -> Job:
        name, saved = tmp_path / "towers.json", tmp_path / "start.pt"
        name.write_text(json.dumps(towers))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(open_clip.CLIP(**towers).state_dict(), saved)
        model = {"name": str(name), "weights": str(saved), "precision": "float32"} | changes.pop("model", {})
        known = {
            "workspace": str(tmp_path / workspace),
            "data": [{"pool": {"format": "webdataset", "path": "*.tar"}}],
            "model": model,
            "samples_seen": STEPS * BATCH,
            "batch_size": BATCH,
            "log_every": 1,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint_every": 4,
        }
        config = Training.model_validate(known | changes)
        dealer = Dealer(towers["vision_cfg"]["image_size"])
        return Job(config, config.model.as_encoder(0), "x", 1, 1, dealer, dealer)

    return make


def train(job: Job) -> dict[str, torch.Tensor]:
    loop._Worker(job, torch.device("cpu")).run()
    records = [json.loads(line) for line in job.config.store.read("metrics.jsonl").splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert all(record["grad_norm"] > 0 for record in records)
    assert read_origin(job.config.store, "model")["identity"] == "x"
    assert not job.config.store.find("training/x/checkpoints")
    return load_file(Path(job.config.workspace) / "model/open_clip_model.safetensors")


def start(job: Job) -> dict[str, torch.Tensor]:
    return torch.load(job.config.model.weights, weights_only=True)


def close(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": "fsdp"},
        {"accumulate": 2},
        {"model": {"grad_checkpointing": True}},
    ],
)
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_ways_to_compute_give_the_same_model(job, changes, loss):
    clipped = {"loss": loss, "optimizer": {"learning_rate": 1e-3, "clip_grad_norm": 0.5}}
    plain = job(workspace="plain", **clipped)
    expected = train(plain)
    assert ("logit_bias" in expected) == (loss == "siglip")
    assert plain.monitor.records[-1]["loss"] < plain.monitor.records[0]["loss"]
    close(train(job(**changes, **clipped)), expected)


def test_a_locked_text_tower_stays(job):
    given = job(model={"lock_text": True})
    trained, before = train(given), start(given)
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, before[name])}
    text = ("transformer.", "token_embedding", "positional_embedding", "ln_final", "text_projection")
    assert changed
    assert not [name for name in changed if name.startswith(text)]
    assert {name for name in before if name.startswith("visual.")} <= changed | {"visual.class_embedding"}


def test_an_average_lies_between_the_start_and_the_end(job):
    trained = train(job(workspace="plain"))
    averaged = job(average_with_start=0.25)
    found, before = train(averaged), start(averaged)
    close(found, {name: 0.75 * trained[name] + 0.25 * tensor for name, tensor in before.items()})
    changed = [name for name in before if (trained[name] - before[name]).abs().max() > 1e-3]
    assert "visual.conv1.weight" in changed
    for name in changed:
        low, high = torch.minimum(before[name], trained[name]), torch.maximum(before[name], trained[name])
        assert ((found[name] >= low - 1e-5) & (found[name] <= high + 1e-5)).all()
        assert not torch.equal(found[name], before[name])
        assert not torch.equal(found[name], trained[name])


def test_an_average_with_batch_norm_has_the_statistics_of_what_it_sees(job):
    averaged = job(NORMED, average_with_start=0.5)
    weights = train(averaged)
    model = open_clip.CLIP(**NORMED)
    model.load_state_dict(weights)
    first = []
    model.visual.trunk.conv1[0].register_forward_hook(lambda module, args, output: first.append(output))
    read = loop.pixel_reader(loop.find_towers(averaged.encoder, "clip"), torch.device("cpu"))
    for step in (0, 1):
        model.visual(read(hand(step, 32).pixels_NHWC))
    means = torch.stack([output.mean(dim=(0, 2, 3)) for output in first]).mean(dim=0)
    torch.testing.assert_close(weights["visual.trunk.conv1.1.running_mean"], means, atol=1e-5, rtol=1e-4)


def infinite(own, everyone, head, first):
    """A loss of a finite value, which rises infinitely fast."""
    rise = (own.image_ND - own.image_ND.detach()).sum() + (own.text_ND - own.text_ND.detach()).sum()
    return clip_loss(own, everyone, head, first) + rise.clamp_min(0).sqrt()


@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_gradient_that_is_no_number_touches_nothing(job, monkeypatch, limit):
    monkeypatch.setitem(LOSSES, "clip", infinite)
    wild = job(optimizer={"clip_grad_norm": limit})
    with pytest.raises(TrainingDiverged, match=r"the gradient's norm must stay a finite number, got (nan|inf) in"):
        train(wild)
    store: Store = wild.config.store
    assert not read_origin(store, "model")
    assert not store.find("training/x/checkpoints")
    (saved,) = (name for name in store.find("training/x/diverged") if name.endswith(".pt"))
    close(torch.load(store.path(saved), weights_only=True)["model"], start(wild))


def test_what_no_other_attempt_can_mend_is_reported_and_not_raised(job, monkeypatch):
    broken = job()
    monkeypatch.setattr(loop, "clamp_scale", lambda scale: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # which Ray tries again
        loop._attempt(broken, torch.device("cpu"))
    assert broken.monitor.failed is None
    wild = job(workspace="wild")
    monkeypatch.setitem(LOSSES, "clip", infinite)
    loop._attempt(wild, torch.device("cpu"))
    assert isinstance(wild.monitor.failed, TrainingDiverged)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    wild.monitor.failed = None
    monkeypatch.setattr(loop, "_Worker", lambda *_: (_ for _ in ()).throw(WorkspaceError("of one worker alone")))
    with pytest.raises(WorkspaceError):  # for which the other one would wait
        loop._attempt(wild, torch.device("cpu"))


def test_weights_that_are_no_numbers_are_neither_saved_nor_finished(job, monkeypatch):
    monkeypatch.setattr(loop, "clamp_scale", lambda scale: scale.data.fill_(float("nan")))
    wild = job(samples_seen=BATCH)
    with pytest.raises(TrainingDiverged, match="the weights must stay finite numbers, got others after step 1: lo"):
        train(wild)
    assert not wild.config.store.find("training/x/checkpoints")
    assert not read_origin(wild.config.store, "model")


def test_a_training_goes_on_from_its_checkpoint_and_ends_once(job, monkeypatch):
    expected = train(job(workspace="plain"))
    cut = job()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_model", None)  # killed at the very end
        with pytest.raises(TypeError):
            train(cut)
    assert len(cut.config.store.find("training/x/checkpoints")) == 4
    cut.config.store.remove("training/x/checkpoints/000000006")
    close(train(cut), expected)
    assert [record["step"] for record in cut.monitor.records] == [*range(1, STEPS + 1), 5, 6]
    train(cut)  # finds the model, and does not begin again without checkpoints
    assert len(cut.monitor.records) == STEPS + 2


def test_a_worker_that_does_not_see_the_checkpoint_stops(job, monkeypatch):
    lost = job()
    worker = loop._Worker(lost, torch.device("cpu"))
    answers = iter([0, 4])  # the first worker finds no model, and a checkpoint
    monkeypatch.setattr(loop, "_of_the_first", lambda value: next(answers))
    with pytest.raises(
        WorkspaceError, match=r"w must be a folder that every node sees, got no checkpoint of step 4"
    ) as e:
        worker.run()
    assert explain(e.value, lost.config) is e.value
