"""Parts of a training that need no Ray: its config, captions, deals, towers, checkpoints and finished models."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip

from operators.encoders.settings import OpenClipSettings
from operators.errors import ConfigError, DamagedError, InputError, ModelError, WorkspaceError
from operators.training.augmentation import Augment
from operators.training.parameters import has_batch_norm
from pipeline.config.loader import load_config
from pipeline.integrity import sealed, unseal
from pipeline.listing import list_shards
from pipeline.models import build_encoder
from pipeline.pool import Pool, Shard
from pipeline.storage import Store
from pipeline.training import examples
from pipeline.training.captions import Labels, read_labels
from pipeline.training.checkpoints import (
    find_checkpoints,
    load_checkpoint,
    newest_sound,
    prune_checkpoints,
    save_checkpoint,
)
from pipeline.training.dealing import Dealing, Picks, deal, share
from pipeline.training.decoding import Block
from pipeline.training.examples import left_out
from pipeline.training.finished import WEIGHTS_NAME, copy_model, read_origin, write_model
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.settings import Captions, TrainedModel, Training
from pipeline.training.towers import build_towers, export_config, find_towers, pixel_reader
from pipeline.training.trainer import check
from pipeline.weights import find_weights, fingerprint
from tests.small_pools import jpeg, write_tar

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
        (
            "model: {name: a, weights: w.pt, lock_image: 0, lock_text: 0}",
            "where lock_image is 0, got 0: nothing would be",
        ),
        (
            "model: {name: ViT-B-32, lock_image: 2}",
            "model.lock_image must be false where weights is random, as what is",
        ),
        (
            "average_with_start: 0.5",
            "average_with_start must be left out where model.weights is random, as random weig",
        ),
        ("schedule: {shape: constant, final: 0.1}", "schedule.final must be 0 where shape is constant, which never fa"),
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
    pool = Pool.model_validate({"format": "parquet", "path": "p"})
    shard = Shard("0.parquet", "p", 0, 0, "")

    def numbers(*values):
        metadata = [json.dumps({"label": value}) for value in values]
        return labels.numbers(pool, shard, range(7, 7 + len(values)), metadata)

    assert numbers(1, "cat", None, "1", " dog ") == [1, 0, None, 1, 1]
    assert labels.numbers(pool, shard, [0], [None]) == [None]
    for value in (2, "fox", True, 1.0, "2"):
        rule = r"label of row 7 of 0\.parquet \(captions\.field label\) must be 0 to 1, or one of the 2 classes"
        with pytest.raises(InputError, match=rule):
            numbers(value)
    with pytest.raises(InputError, match=r"captions\.classes must hold a text in each place, got '' in place 2"):
        read_labels(Captions(field="f", classes=("a", "")))
    with pytest.raises(InputError, match=r"^none\.json must exist, got no such file"):
        read_labels(Captions(field="f", classes="none.json"))


def test_the_class_of_a_tar_is_its_member_else_its_metadata(tmp_path):
    samples = [{"jpg": jpeg(0), "cls": b"1"}, {"jpg": jpeg(1), "json": b'{"cls": 2}'}, {"jpg": jpeg(2), "cls": b"fox"}]
    write_tar(tmp_path / "0.tar", [*samples, {"jpg": jpeg(3)}])
    pool = Pool.model_validate({"format": "webdataset", "path": str(tmp_path / "0.tar")}).without_text
    (shard,) = list_shards(pool)
    labels = Labels("cls", ("cat", "dog", "fox"), ("{c}",))
    metadata = [None, '{"cls": 2}', None, None]
    assert labels.numbers(pool, shard, [0, 1, 2, 3], metadata) == [1, 2, 2, None]
    assert labels.numbers(pool, shard, [2, 3], metadata[2:]) == [2, None]


def hands(picks: Picks, workers: int, augment: Augment | None = None):
    """Deals from two blocks of four rows, one with captions of its own and one with classes."""
    pixels = np.arange(8 * 12, dtype=np.uint8).reshape(8, 2, 2, 3)
    uids = np.arange(8, dtype=np.uint64)
    own = Block(pixels[:4], uids[:4], uids[:4], np.arange(4 * 5, dtype=np.int32).reshape(4, 5), None)
    classes = Block(pixels[4:], uids[4:], uids[4:], None, np.asarray([0, 1, 2, 0]))
    sentences = np.arange(3 * 3 * 5, dtype=np.int32).reshape(3, 3, 5) + 1000
    shared = Dealing(0, augment, {1: sentences})
    shares = share(len(picks.row_N), 4, workers)
    return [deal(shared, Picks(*(column[places_N] for column in picks)), own, classes) for places_N in shares]


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
    settings = TrainedModel(name=tiny.name, weights=started.weights, lock_image=True)
    model = build_towers(settings, started, "clip")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in model.visual.parameters())
    assert model.token_embedding.weight.requires_grad
    other = {**TINY, "embed_dim": 16}
    (tmp_path / "tiny.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match="weights must be those of"):
        build_towers(TrainedModel(name=tiny.name), started, "clip")


BATCH_NORM = {
    "timm_model_name": "test_efficientnet",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 32,
}


def locked(tiny, folder, vision, **locks):
    """The towers of another image tower, with locks, and the same without."""
    (folder / "other.json").write_text(json.dumps({**TINY, "vision_cfg": vision}))
    settings = TrainedModel(name=str(folder / "other.json"), weights="some.pt", **locks)  # which nothing reads here
    encoder = tiny.model_copy(update={"name": settings.name})
    return [build_towers(given, encoder, "clip") for given in (settings, TrainedModel(name=settings.name))]


@pytest.mark.parametrize("lock", [True, 1])
def test_a_locked_tower_keeps_its_statistics_and_its_activations(tiny, tmp_path, lock):
    model, free = locked(tiny, tmp_path, BATCH_NORM, lock_image=lock)
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.visual.trunk.bn1.state_dict().items()}
    model.visual(pixels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.visual.trunk.bn1.state_dict().items())
    fresh = locked(tiny, tmp_path, BATCH_NORM, lock_image=lock)[0]
    assert torch.equal(fresh.eval().visual(pixels), free.eval().visual(pixels))
    trained = [name for name, parameter in model.visual.named_parameters() if parameter.requires_grad]
    assert bool(trained) == (lock == 1 and lock is not True)
    assert not any(name.startswith(("trunk.conv_stem", "trunk.bn1")) for name in trained)
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert has_batch_norm(locked(tiny, tmp_path, BATCH_NORM)[0])
    assert has_batch_norm(locked(tiny, tmp_path, BATCH_NORM, lock_image=lock)[0]) == (lock is not True)


def test_a_tower_that_cannot_be_locked_in_part_is_named(tiny, tmp_path):
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    with pytest.raises(ConfigError, match=r"model\.lock_image must be true or false .* got 2 \(partial locking"):
        locked(tiny, tmp_path, resnet, lock_image=2)


def test_what_cannot_be_trained_is_known_before_any_work(tmp_path):
    def config(**changes):
        pool = {"format": "webdataset", "path": "*.tar"}
        given = {"workspace": str(tmp_path / "w"), "data": [{"pool": pool}], "samples_seen": 64, "batch_size": 16}
        return Training.model_validate(given | {"model": {"name": str(tmp_path / "norm.json")}} | changes)

    (tmp_path / "norm.json").write_text(json.dumps({**TINY, "vision_cfg": BATCH_NORM}))
    check(config())
    with pytest.raises(ConfigError, match=r"accumulate must be 1 for .*norm.json, whose batch norms would .* got 2"):
        check(config(accumulate=2))
    torch.save(open_clip.CLIP(**TINY).state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(ModelError, match=r"model: weights must be those of"):
        check(config(model={"name": str(tmp_path / "norm.json"), "weights": str(tmp_path / "tiny.pt")}))
    (tmp_path / "w/run.json").write_text("{}")
    with pytest.raises(WorkspaceError, match=r"workspace must be a folder of the training's own, got .* \(run.json\)"):
        check(config())


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
    manifest = tmp_path / "c/000000010/manifest.json"
    manifest.write_bytes(sealed(unseal(manifest.read_bytes()) | {"format_version": 2}))
    with pytest.raises(WorkspaceError, match=r"manifest.json must be of checkpoint format 1, got 2"):
        find_checkpoints(store, "c")


def test_checkpoints_that_are_listed_but_gone_are_passed_over(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    save_checkpoint(store, "c", {"step": 10}, facts(10))
    listed = {"c/000000005/manifest.json": 300, "c/000000005/0.pt": 9} | store.find("c")
    monkeypatch.setattr(Store, "find", lambda *_: listed)
    assert [checkpoint.step for checkpoint in find_checkpoints(store, "c")] == [10]
    assert newest_sound(store, "c") == 10


def test_the_metrics_of_a_lost_attempt_are_dropped(tmp_path):
    store = Store(str(tmp_path))
    for start, losses in ((0, [5.0, 4.0, 3.0]), (2, [2.5])):
        log = MetricsLog(store, start, "training/x", "tensorboard")
        for step, loss in enumerate(losses, start + 1):
            log.add({"step": step, "loss": loss})
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 3, "loss": 2.5}]
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 2
    other = MetricsLog(store, 2, "training/y", "tensorboard")
    other.add({"step": 3, "loss": 9.0})
    other.close()  # another training's lines are none of its own
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 9.0}\n'
    assert len((tmp_path / "training/x/metrics.jsonl").read_text().splitlines()) == 3


def test_what_is_left_out_is_said_in_lines():
    assert left_out(0, {}, {}) == []
    assert left_out(1200, {"bad_json": 1000, "split_key": 2}, {f"{i}.tar": "truncated" for i in range(5)}) == [
        "1,200 kept samples without a caption",
        "1,002 rejected (bad_json 1,000, split_key 2)",
        "what could not be read of damaged shards: 0.tar (truncated), 1.tar (truncated), 2.tar (truncated) and 2 more",
    ]


def test_shards_of_one_name_are_one_shard():
    def portion(url, fingerprint):
        return SimpleNamespace(run=SimpleNamespace(shards=[Shard("0.tar", url, 0, 9, fingerprint)]))

    examples._check_names([portion("a/0.tar", "x"), portion("a/0.tar", "x")])
    with pytest.raises(
        ConfigError, match=r"shard names must be unique over data, got '0.tar' from a/0.tar and b/0.tar"
    ):
        examples._check_names([portion("a/0.tar", "x"), portion("b/0.tar", "y")])


def test_one_class_is_one_caption_whatever_the_templates(monkeypatch):
    labels = Labels("f", ("cat", "dog"), ("a {c}", "the {c}"))
    for captions, expected in (([1, 1], {"a dog"}), ([0, 1, 1], {"a cat", "a dog"})):
        usable = examples.Usable([0], None, None, captions, 0)
        monkeypatch.setattr(examples, "read_usable", lambda piece, usable=usable: usable)
        assert examples._survey((0, SimpleNamespace(labels=labels)))[1].captions == expected


def test_labels_have_a_sentence_for_each_template_and_class():
    assert Labels("f", ("x",), ("a {c}", "{c} and {c}")).sentences() == ["a x", "x and x"]
