"""Parts of a training that need no Ray: its config, captions, deals, towers, checkpoints and finished models."""

import json

import numpy as np
import pytest
import torch

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip

from operators.encoders.settings import OpenClipSettings
from operators.errors import ConfigError, DamagedError, InputError, ModelError
from operators.training.augmentation import Augment
from pipeline.config.loader import load_config
from pipeline.models import build_encoder
from pipeline.storage import Store
from pipeline.training.captions import Labels, read_labels
from pipeline.training.checkpoints import (
    find_checkpoints,
    load_checkpoint,
    newest_sound,
    prune_checkpoints,
    save_checkpoint,
)
from pipeline.training.dealing import Dealing, Picks, deal
from pipeline.training.decoding import Block
from pipeline.training.finished import WEIGHTS_NAME, copy_model, read_origin, write_model
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.settings import Captions, TrainedModel, Training
from pipeline.training.towers import build_towers, export_config, find_towers, pixel_reader
from pipeline.weights import find_weights, fingerprint

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
TOKENS = np.random.default_rng(0).integers(1, 400, (3, 8), dtype=np.int32)
CONFIG = """
workspace: w
data:
  - pool: {format: webdataset, path: "*.tar"}
model: {name: tiny.json}
samples_seen: 1000
batch_size: 64
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return OpenClipSettings(library="open_clip", name=str(path), weights="random", precision="float32", seed=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch_size: 64", "batch_size must be a multiple of resources.workers 1 times accumulate 3, got 64"),
        ("schedule: {warmup_steps: 20}", "schedule must leave room for all in the 16 steps of the training, got 20"),
        ("schedule: {shape: cooldown}", "schedule.cooldown_steps must be positive where shape is cooldown, and only"),
        ("augment: {scale: [0.9, 0.1]}", "augment is wrong: scale must be [low, high] with 0 < low <= high <= 1"),
        ("data: []", "data must have at least 1 items, got an empty list"),
        ("data: [{weight: 2}]", "data.0 must name a pool or a workspace, got neither"),
        ("model: {name: ViT-B-32, patch_dropout: 1}", "model.patch_dropout must be in [0, 1), got 1"),
        ("model: {name: ViT-B-32, lock_image: true, lock_text: true}", "model.lock_text must be false where lock_imag"),
        ("data: [{workspace: v, captions: {field: f, classes: [a], templates: [x]}}]", "must hold {c} for the class"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_the_key_and_the_rule(tmp_path, change, message):
    key = change.partition(":")[0]
    lines = [line for line in CONFIG.splitlines() if not line.startswith((key, "  -"))]
    data = [] if key == "data" else ['data: [{pool: {format: webdataset, path: "*.tar"}}]']
    lines = [line for line in lines if not line.startswith("data")] + data
    accumulate = ["accumulate: 3"] if key == "batch_size" else []
    (tmp_path / "c.yaml").write_text("\n".join([*lines, change, *accumulate]))
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "c.yaml"), Training)
    assert message in str(caught.value)


def test_a_config_rounds_up_to_whole_batches_and_knows_none(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG + "augment: none\n")
    config = load_config(str(tmp_path / "c.yaml"), Training)
    assert config.num_steps == 16
    assert config.augment is None


def test_classes_and_templates_come_from_files(tmp_path):
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "templates.txt").write_text("a {c}.\nthe {c}.\n")
    captions = Captions(
        field="label", classes=str(tmp_path / "classnames.txt"), templates=str(tmp_path / "templates.txt")
    )
    labels = read_labels(captions)
    assert labels.sentences() == ["a cat.", "a dog.", "the cat.", "the dog."]
    assert [labels.number({"label": value}) for value in (1, "cat", None)] == [1, 0, None]
    assert labels.number(None) is None
    for value in (2, "fox", True, 1.0):
        with pytest.raises(InputError, match="must list every class: field label must hold the names or the numbers"):
            labels.number({"label": value})
    with pytest.raises(InputError, match="must all be different, got 'a' twice"):
        read_labels(Captions(field="f", classes=("a", "a")))
    with pytest.raises(InputError, match=r"captions.classes must be a list, or a readable file of one, got none.json"):
        read_labels(Captions(field="f", classes="none.json"))


def hands(picks: Picks, workers: int, augment: Augment | None = None):
    """Deals from two blocks of four rows, one with captions of its own and one with classes."""
    pixels = np.arange(8 * 12, dtype=np.uint8).reshape(8, 2, 2, 3)
    uids = np.arange(8, dtype=np.uint64)
    own = Block(pixels[:4], uids[:4], uids[:4], np.arange(4 * 5, dtype=np.int32).reshape(4, 5), None)
    classes = Block(pixels[4:], uids[4:], uids[4:], None, np.asarray([0, 1, 2, 0]))
    sentences = np.arange(3 * 3 * 5, dtype=np.int32).reshape(3, 3, 5) + 1000
    return deal(Dealing(0, augment, {1: sentences}), picks, 4, workers, own, classes)


def test_workers_get_their_shares_of_each_batch_whatever_their_number():
    draws = np.random.default_rng(2)
    block_N = draws.integers(0, 2, 12)
    picks = Picks(block_N, draws.integers(0, 4, 12), block_N, np.arange(12) // 8, np.zeros(12, dtype=np.int64))
    (alone,) = hands(picks, 1, Augment(flip=True))
    assert np.array_equal(alone.uids_N2[:, 0], picks.block_N * 4 + picks.row_N)
    first, second = hands(picks, 2, Augment(flip=True))
    for whole, *shares in zip(alone, first, second, strict=True):
        batches = [share.reshape(3, 2, *share.shape[1:]) for share in shares]
        assert np.array_equal(np.concatenate(batches, axis=1).reshape(whole.shape), whole)


def test_captions_are_their_own_or_a_template_drawn_anew_each_time():
    rows = np.zeros(60, dtype=np.int64)
    (own,) = hands(Picks(rows, rows + 2, rows, np.arange(60), rows), 1)
    assert (own.tokens_NL == np.arange(10, 15)).all()
    (drawn,) = hands(Picks(rows + 1, rows + 2, rows + 1, np.arange(60), rows), 1)
    templates, counts = np.unique((drawn.tokens_NL[:, 0] - 1000) // 15, return_counts=True)
    assert templates.tolist() == [0, 1, 2]
    assert counts.min() > 8
    assert (((drawn.tokens_NL - 1000) // 5) % 3 == 2).all()


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_finished_model_is_the_same_in_open_clip_and_in_winnow(tiny, tmp_path, loss):
    model = build_towers(TrainedModel(name=tiny.name, patch_dropout=0.5), tiny, loss)
    assert (model.logit_bias is None) == (loss == "clip")
    architecture = find_towers(tiny, loss)
    store = Store(str(tmp_path / "w"))
    write_model(store, "model", model.state_dict(), export_config(architecture), {"identity": "x"})
    model.eval()
    image = model.encode_image(pixel_reader(architecture, torch.device("cpu"))(PIXELS)).detach()
    text = model.encode_text(torch.from_numpy(TOKENS).long()).detach()

    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/w/model")
    theirs.eval()
    pixels = torch.stack([transform.transforms[-1](torch.from_numpy(p).permute(2, 0, 1) / 255) for p in PIXELS])
    assert torch.equal(theirs.encode_image(pixels), image)
    assert torch.equal(theirs.encode_text(torch.from_numpy(TOKENS).long()), text)
    assert loss == "clip" or theirs.logit_bias.item() == -10

    copy_model(store, "model", str(tmp_path / "out"))
    out = Store(str(tmp_path / "out"))
    assert read_origin(out, "")["identity"] == "x"
    ours = build_encoder(tiny.model_copy(update={"weights": str(tmp_path / "out")}), device="cpu", threads=1)
    np.testing.assert_allclose(ours.encode_images(PIXELS), image.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.encode_texts(TOKENS), text.numpy(), atol=1e-6)

    weights = out.read(WEIGHTS_NAME)
    out.replace(WEIGHTS_NAME, weights[:-1] + bytes([weights[-1] ^ 1]))
    assert read_origin(out, "") == {}  # so that it is made again
    with pytest.raises(ModelError, match=r"must be of the SHA-256 \w+ that training.json beside them gives"):
        fingerprint(find_weights(out.url))


def test_training_starts_from_what_open_clip_saved(tiny, tmp_path):
    with torch.random.fork_rng():
        saved = open_clip.CLIP(**TINY)
    torch.save({"epoch": 1, "name": "x", "state_dict": saved.state_dict(), "optimizer": {}}, tmp_path / "epoch_1.pt")
    started = tiny.model_copy(update={"weights": str(tmp_path / "epoch_1.pt")})
    model = build_towers(TrainedModel(name=tiny.name, lock_image=True), started, "clip")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in model.visual.parameters())
    assert model.token_embedding.weight.requires_grad
    other = {**TINY, "embed_dim": 16}
    (tmp_path / "tiny.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match="weights must be those of"):
        build_towers(TrainedModel(name=tiny.name), started, "clip")


def facts(step: int) -> dict[str, object]:
    return {"step": step, "samples_seen": step * 4, "seconds": 1.5, "waited": 0.5, "loss": 2.0}


def test_checkpoints_are_whole_or_not_there(tmp_path):
    store = Store(str(tmp_path))
    state = {"model": {"w": torch.arange(3.0)}, "optimizer": {"lr": 0.5}}
    for step in (5, 10, 15):
        save_checkpoint(store, "c", {**state, "step": step}, facts(step))
    found = find_checkpoints(store, "c")
    assert [checkpoint.step for checkpoint in found] == [5, 10, 15]
    loaded = load_checkpoint(store, found[1])
    assert loaded["step"] == 10
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))

    (tmp_path / found[2].path).write_bytes(b"cut")
    assert [checkpoint.step for checkpoint in find_checkpoints(store, "c")] == [5, 10]
    data = bytearray((tmp_path / found[1].path).read_bytes())
    data[-1] ^= 1
    (tmp_path / found[1].path).write_bytes(data)
    with pytest.raises(DamagedError, match=r"^c/000000010/\w+.pt must be .*, got the SHA-256"):
        load_checkpoint(store, found[1])
    assert newest_sound(store, "c") == 5
    assert [name.split("/")[2] for name in store.find("damaged")] == ["000000010"] * 2 + ["000000015"] * 2
    save_checkpoint(store, "c", {**state, "step": 10}, facts(10))
    assert newest_sound(store, "c") == 10
    prune_checkpoints(store, "c", 1)
    assert [checkpoint.step for checkpoint in find_checkpoints(store, "c")] == [10]
    assert not list(tmp_path.glob("c/000000005"))


def test_the_metrics_of_a_lost_attempt_are_dropped(tmp_path):
    store = Store(str(tmp_path))
    for start, losses in ((0, [5.0, 4.0, 3.0]), (2, [2.5])):
        log = MetricsLog(store, start, "tensorboard")
        for step, loss in enumerate(losses, start + 1):
            log.add({"step": step, "loss": loss})
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 3, "loss": 2.5}]
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 2


def test_labels_have_a_sentence_for_each_template_and_class():
    assert Labels("f", ("x",), ("a {c}", "{c} and {c}")).sentences() == ["a x", "x and x"]
