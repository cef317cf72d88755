import json
import logging
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip
import timm

from operators.encoders.pixels import PixelsEncoder
from operators.encoders.settings import Normalization, OpenClipSettings, PixelsSettings, TimmSettings
from operators.errors import ModelError
from pipeline import weights
from pipeline.models import build_encoder, build_preprocessor, check_model, decide_precision, model_identity
from pipeline.models import open_clip as clip_models
from pipeline.models import timm as timm_models

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


class Boom:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return open_clip.CLIP(**TINY).eval().state_dict()


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def clip(name, weights="random", **settings):
    return OpenClipSettings(library="open_clip", name=str(name), weights=str(weights), **settings)


def vit(weights="random", name="test_vit", **settings):
    return TimmSettings(library="timm", name=name, weights=str(weights), **settings)


def embed(settings):
    return build_encoder(settings, device="cpu").encode_images(PIXELS)


# Reading weights


@pytest.fixture
def expected(config, trained, tmp_path):
    """What the trained model makes of PIXELS, read from a plain safetensors file."""
    save_file(trained, tmp_path / "plain.safetensors")
    return embed(clip(config, tmp_path / "plain.safetensors"))


def test_weights_in_every_accepted_form_give_the_same_embeddings(config, trained, tmp_path, expected):
    checkpoint = {
        "epoch": 3,
        "name": "run",
        "state_dict": trained,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    distributed = {**checkpoint, "state_dict": {f"module.{key}": value for key, value in trained.items()}}
    for number, content in enumerate([trained, checkpoint, distributed]):
        path = tmp_path / f"epoch_{number}.pt"
        torch.save(content, path)
        check_model(clip(config, path))
        np.testing.assert_array_equal(embed(clip(config, path)), expected)
    assert not np.array_equal(embed(clip(config)), expected)


def test_the_old_torch_format_is_read_too(config, trained, tmp_path, expected):
    torch.save(trained, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(embed(clip(config, tmp_path / "old.pth")), expected)


def test_an_export_folder_brings_its_own_transform_and_must_be_of_the_named_architecture(
    config, trained, tmp_path, expected
):
    folder = tmp_path / "export"
    folder.mkdir()
    save_file(trained, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    with pytest.raises(
        ModelError, match=r"must be the architecture .*, such as .*export/open_clip_config\.json, got V"
    ):
        check_model(clip("ViT-B-32", folder))
    check_model(clip(folder / "open_clip_config.json", folder))
    settings = clip(config, folder)
    check_model(settings)
    encoder = build_encoder(settings, device="cpu")
    level = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    np.testing.assert_allclose(encoder.normalize(level).flatten(), [0.9, 0.8, 0.7], atol=1e-6)
    assert encoder.dim == 8
    assert build_preprocessor(settings).image(Image.new("RGB", (40, 30))).shape == (16, 16, 3)
    like_expected = settings.model_copy(
        update={"preprocess": Normalization(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)}
    )
    np.testing.assert_array_equal(embed(like_expected), expected)


def test_remote_weights_are_downloaded_once_into_the_cache(config, trained, tmp_path, monkeypatch, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fsspec.open("memory://bucket/tiny.safetensors", "wb") as stream:
        stream.write((tmp_path / "plain.safetensors").read_bytes())
    settings = clip(config, "memory://bucket/tiny.safetensors")
    check_model(settings)
    assert not (tmp_path / "cache").exists()
    np.testing.assert_array_equal(embed(settings), expected)
    [cached] = (tmp_path / "cache" / "winnow" / "weights").iterdir()
    first = cached.stat().st_mtime_ns
    np.testing.assert_array_equal(embed(settings), expected)
    assert [path.stat().st_mtime_ns for path in cached.parent.iterdir()] == [first]


def test_timm_weights_are_read_from_a_file(tmp_path):
    model = timm.create_model("test_vit", pretrained=False)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    check_model(vit(tmp_path / "vit.safetensors"))
    state = timm_models.load_weights(vit(tmp_path / "vit.safetensors"))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert build_encoder(vit(tmp_path / "vit.safetensors"), device="cpu").dim == model.num_features


def test_nothing_is_ever_unpickled(config, tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Boom()}, path)
    with pytest.raises(ModelError, match="weights must be tensors and plain values only"):
        embed(clip(config, path))
    path.write_bytes(pickle.dumps(Boom(), protocol=2))
    with pytest.raises(ModelError, match="weights must be tensors and plain values only"):
        embed(clip(config, path))


def test_a_torchscript_program_is_refused(config, tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        archive.writestr("model/code/__torch__.py", "print('executed')")
    with pytest.raises(ModelError, match="got a TorchScript program"):
        embed(clip(config, tmp_path / "ViT-B-32.pt"))


def test_a_checkpoint_without_tensors_is_refused(config, tmp_path):
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with pytest.raises(ModelError, match="weights must hold tensors by name"):
        embed(clip(config, tmp_path / "empty.pt"))


# Checks before any work


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(ModelError, match=r"got 'ViT-B-23' \(did you mean .*ViT-B-32"):
        check_model(clip("ViT-B-23"))
    with pytest.raises(ModelError, match=r"got 'test_vitt' \(did you mean .*test_vit"):
        check_model(vit(name="test_vitt"))


def test_missing_weights_are_named(config, tmp_path):
    for settings in (clip(config, tmp_path / "none.pt"), vit(tmp_path / "none.pt"), clip("ViT-B-32", "laion3b")):
        with pytest.raises(ModelError, match=f"weights must exist and be readable, got {settings.weights}"):
            check_model(settings)
    with pytest.raises(ModelError, match=r"must hold a \.safetensors or \.bin file"):
        check_model(vit(tmp_path))


def test_truncated_or_renamed_weights_are_found_without_reading_them(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "load_file", None)
    path = tmp_path / "vit.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    whole = path.read_bytes()
    check_model(vit(path))
    for content, rule in [
        (whole[:-1], f"must be {len(whole)} bytes long"),
        (whole[:40], "must be safetensors"),
        (b"", "must be safetensors"),
        (b"<html>not found</html>", "must be safetensors"),
        ((10).to_bytes(8, "little") + b"not a json" * 9, "must be safetensors"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelError, match=rule):
            check_model(vit(path))
    path = tmp_path / "vit.pt"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match=r"must be a \.safetensors or torch file"):
        check_model(vit(path))


def test_captions_need_a_text_tower(config):
    check_model(clip(config), text=True)
    for settings in (vit(), PixelsSettings(library="pixels")):
        check_model(settings)
        with pytest.raises(ModelError, match="text tower"):
            check_model(settings, text=True)


def test_openai_s_weights_need_the_quickgelu_name():
    check_model(clip("ViT-B-32-quickgelu", "openai"))
    check_model(clip("ViT-B-32", "laion2b_s34b_b79k"))
    with pytest.raises(ModelError, match="name must be ViT-B-32-quickgelu for weights 'openai', got 'ViT-B-32'"):
        check_model(clip("ViT-B-32", "openai"))


def test_a_file_that_looks_like_dfn_s_is_remarked_on(trained, tmp_path, caplog):
    save_file(trained, tmp_path / "dfn2b.safetensors")
    with caplog.at_level(logging.WARNING):
        check_model(clip("ViT-B-32-quickgelu", tmp_path / "dfn2b.safetensors"))
        assert not caplog.records
        check_model(clip("ViT-B-32", tmp_path / "dfn2b.safetensors"))
    assert "need ViT-B-32-quickgelu" in caplog.text


@pytest.mark.parametrize("content", ["[1]", "{}", '{"model_cfg": {"embed_dim": 8}}', "not json"])
def test_a_config_that_describes_no_clip_is_refused(tmp_path, content):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(ModelError, match="model config must"):
        check_model(clip(tmp_path / "odd.json"))


def test_hub_names_and_hub_weights_go_together(monkeypatch):
    for settings in (clip("hf-hub:owner/repo"), clip("ViT-B-32", "hub")):
        with pytest.raises(ModelError, match="weights must be hub exactly where name starts with hf-hub:"):
            check_model(settings)

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(clip_models, "download_pretrained_from_hf", offline)
    monkeypatch.setattr(timm_models, "load_state_dict_from_hf", offline)
    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(ModelError, match="got no route to host"):
        check_model(clip("hf-hub:owner/repo", "hub"))
    for settings in (vit("hub"), clip("ViT-B-32", "laion2b_s34b_b79k")):
        with pytest.raises(ModelError, match=r"must be downloadable, or be a local path; got no route to host"):
            build_encoder(settings, device="cpu")


# The whole, against the libraries


def test_a_model_equals_what_open_clip_builds(config, tmp_path, trained):
    save_file(trained, tmp_path / "tiny.safetensors")
    open_clip.add_model_config(config)
    model, _, reference = open_clip.create_model_and_transforms("tiny", pretrained=str(tmp_path / "tiny.safetensors"))
    settings = clip(config, tmp_path / "tiny.safetensors", batch_size=3)
    preprocessor, encoder = build_preprocessor(settings), build_encoder(settings, device="cpu")
    images = [Image.fromarray(rows.repeat(3, axis=0).repeat(2, axis=1)) for rows in PIXELS]
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([reference(image) for image in images])).numpy()
    np.testing.assert_array_equal(
        encoder.encode_images(np.stack([preprocessor.image(image) for image in images])), expected
    )


def test_a_tag_brings_its_own_transform():
    image = Image.fromarray(PIXELS[0].repeat(20, axis=0).repeat(30, axis=1))
    siglip = build_preprocessor(clip("ViT-B-16-SigLIP", "webli")).image(image)
    plain = build_preprocessor(clip("ViT-B-16-SigLIP")).image(image)
    squash = Normalization(resize_mode="squash", interpolation="bicubic")
    assert not np.array_equal(siglip, plain)
    np.testing.assert_array_equal(build_preprocessor(clip("ViT-B-16-SigLIP", preprocess=squash)).image(image), siglip)


@pytest.mark.parametrize("library", ["open_clip", "timm", "pixels"])
def test_preprocessors_travel_between_processes(config, library):
    settings = {"open_clip": clip(config), "timm": vit(), "pixels": PixelsSettings(library="pixels")}[library]
    preprocessor = build_preprocessor(settings)
    if library == "open_clip":
        preprocessor.text(["a dog"])
    image = Image.fromarray(PIXELS[0])
    copy = pickle.loads(pickle.dumps(preprocessor))  # noqa: S301
    np.testing.assert_array_equal(copy.image(image), preprocessor.image(image))


def test_pixels_need_nothing():
    assert isinstance(build_encoder(PixelsSettings(library="pixels")), PixelsEncoder)


# Imports

USE = """
import numpy as np
from PIL import Image
from operators.encoders.settings import PixelsSettings, TimmSettings
from pipeline.models import build_encoder, build_preprocessor, check_model, model_identity
settings = {settings}
check_model(settings)
model_identity(settings)
rows = build_preprocessor(settings).image(Image.new("RGB", (9, 9)))[None]
assert len(build_encoder(settings, device="cpu").encode_images(rows)) == 1
"""


def model_libraries_loaded_by(code):
    """The model libraries in a fresh process that has run some code."""
    watched = {"torch", "torchvision", "timm", "open_clip"}
    probe = f"{code}\nimport sys\nprint(*{watched} & sys.modules.keys())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_drivers_and_workers_import_no_model_library_until_a_model_needs_it():
    modules = "pipeline.curate, pipeline.models, pipeline.stream.chunks, pipeline.stream.encode"
    assert model_libraries_loaded_by(f"import {modules}") == set()


def test_a_model_imports_its_own_library_only():
    pixels = USE.format(settings="PixelsSettings(library='pixels')")
    assert model_libraries_loaded_by(pixels) == set()
    vit = USE.format(settings="TimmSettings(library='timm', name='test_vit', weights='random')")
    assert model_libraries_loaded_by(vit) == {"torch", "torchvision", "timm"}


def test_a_tokenizer_that_cannot_be_had_says_so(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(clip_models, "HFTokenizer", unreachable)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": "no/such-tokenizer"}}))
    with pytest.raises(ModelError, match=r"tokenizer no/such-tokenizer of .* must be .* downloadable, got no network"):
        build_preprocessor(clip(str(config))).text(["a dog"])


# Identity


def test_identity_follows_content_and_not_names(config, trained, tmp_path):
    first, moved, changed = (tmp_path / f"{name}.safetensors" for name in ("first", "moved", "changed"))
    save_file(trained, first)
    save_file(trained, moved)
    save_file({**trained, "logit_scale": trained["logit_scale"] + 1}, changed)
    other_config = tmp_path / "renamed.json"
    other_config.write_text(json.dumps(TINY, indent=4))
    identity = model_identity(clip(config, first))
    assert identity == model_identity(clip(other_config, moved))
    assert identity != model_identity(clip(config, changed))
    changed.replace(first)
    assert identity != model_identity(clip(config, first))


def test_identity_of_remote_weights_is_their_size_and_etag(config):
    path = "memory://bucket/a.safetensors"
    identities = set()
    for content in (b"a", b"b"):
        with fsspec.open(path, "wb") as stream:
            stream.write(content)
        identities.add(model_identity(clip(config, path)))
    assert len(identities) == 2
    assert '"weights":"1:' in identities.pop()


def test_identity_changes_with_whatever_changes_an_embedding(config):
    base = vit()
    variants = [
        base,
        vit(seed=1),
        vit(precision="bfloat16"),
        vit(decode="fast"),
        vit(image_size=224),
        vit(batch_size=8),
    ]
    variants += [clip(config), clip("ViT-B-32"), clip(config, preprocess=Normalization(mean=(0, 0, 0)))]
    variants += [PixelsSettings(library="pixels"), PixelsSettings(library="pixels", size=8)]
    assert len({model_identity(settings) for settings in variants}) == len(variants)


def test_precision_is_decided_by_the_machine_that_starts_the_run_or_the_gpus_that_it_asks_for(monkeypatch):
    addresses = set()
    for has_gpu, precision in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        decided = decide_precision(vit())
        assert decided == vit(precision=precision)
        addresses.add(model_identity(decided))
        assert decide_precision(vit(precision="float32")).precision == "float32"
        assert [decide_precision(vit(), gpus).precision for gpus in (0, 8)] == ["float32", "bfloat16"]
    assert len(addresses) == 2
    assert decide_precision(PixelsSettings(library="pixels")) == PixelsSettings(library="pixels")


def test_identity_ignores_the_seed_of_weights_that_are_not_random():
    assert model_identity(clip("ViT-B-32", "laion2b_s34b_b79k", seed=1)) == model_identity(
        clip("ViT-B-32", "laion2b_s34b_b79k")
    )
