"""The two halves of each model, against the library's own transform, tokenizer and forward pass."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip
import timm
from open_clip.transform import PreprocessCfg, image_transform_v2
from timm.data import create_transform, resolve_model_data_config

from operators.encoders import open_clip as clip_encoder
from operators.encoders import timm as timm_encoder
from operators.encoders.open_clip import Architecture, OpenClipPreprocessor
from operators.encoders.pixels import PixelsEncoder, PixelsPreprocessor
from operators.encoders.settings import ModelSettings, OpenClipSettings, PixelsSettings, TimmSettings
from operators.encoders.timm import TimmPreprocessor
from operators.encoders.torch_encoder import Runtime, choose_runtime
from operators.errors import ModelError
from operators.images import decode

RUNTIME = Runtime(torch.device("cpu"), autocast=False, batch_size=4, threads=1)
TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY = Architecture("tiny", TINY_CLIP)
SIZES = [(64, 48), (33, 97), (20, 20), (32, 32), (500, 7)]
CAPTIONS = ["a dog", "", "three cats on a mat " * 20, "日本語 ünïcode 🙂"]


def noise(size=(40, 40)):
    width, height = size
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def stored(size, mode):
    """An image file of some mode, as we decode it and as Pillow alone does."""
    buffer = io.BytesIO()
    noise(size).convert(mode).save(buffer, format="TIFF" if mode == "CMYK" else "PNG")
    return decode(buffer.getvalue(), max_pixels=10**6).image, Image.open(buffer).convert("RGB")


def through_both_halves(preprocessor, encoder, image):
    return encoder.normalize(torch.from_numpy(preprocessor.image(image).copy())[None])[0]


@pytest.fixture(scope="module")
def clip_tiny():
    return clip_encoder.build_encoder(TINY, None, RUNTIME, seed=1)


@pytest.fixture(scope="module")
def timm_tiny():
    return timm_encoder.build_encoder(TimmSettings(library="timm", name="test_vit", weights="random"), None, RUNTIME)


@pytest.fixture(scope="module")
def library_clip():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return open_clip.CLIP(**TINY_CLIP).eval()


# Preprocessing


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("size", SIZES)
def test_clip_pixels_equal_the_reference_transform(clip_tiny, size, mode):
    reference = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    image, opened = stored(size, mode)
    assert torch.equal(through_both_halves(OpenClipPreprocessor(TINY, "exact"), clip_tiny, image), reference(opened))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", SIZES[:2])
def test_clip_pixels_follow_the_preprocess_config(size, resize_mode):
    cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "interpolation": "bilinear", "resize_mode": resize_mode}
    architecture = Architecture("tiny", TINY_CLIP, cfg)
    encoder = clip_encoder.build_encoder(architecture, None, RUNTIME)
    ours = through_both_halves(OpenClipPreprocessor(architecture, "exact"), encoder, noise(size))
    reference = image_transform_v2(PreprocessCfg(size=32, **cfg), is_train=False)
    assert torch.equal(ours, reference(noise(size)))


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("size", [(300, 200), (161, 500), (20, 20)])
def test_timm_pixels_equal_the_reference_transform(timm_tiny, size, mode):
    model = timm.create_model("test_vit", pretrained=False)
    reference = create_transform(**resolve_model_data_config(model), is_training=False)
    preprocessor = TimmPreprocessor(TimmSettings(library="timm", name="test_vit", weights="random"))
    image, opened = stored(size, mode)
    assert torch.equal(through_both_halves(preprocessor, timm_tiny, image), reference(opened))


def test_dinov2_is_preprocessed_as_it_was_trained_unless_told_otherwise():
    name = "vit_large_patch14_dinov2.lvd142m"
    trained = TimmPreprocessor(TimmSettings(library="timm", name=name, weights="random", decode="fast"))
    smaller = TimmPreprocessor(TimmSettings(library="timm", name=name, weights="random", image_size=224))
    assert (trained.image(noise()).shape, trained.draft) == ((518, 518, 3), (518, 518))
    assert (smaller.image(noise()).shape, smaller.draft) == ((224, 224, 3), None)


def test_draft_covers_the_resize_that_comes_before_the_crop():
    preprocessor = TimmPreprocessor(TimmSettings(library="timm", name="test_vit", weights="random", decode="fast"))
    assert preprocessor.image(noise()).shape == (160, 160, 3)
    assert preprocessor.draft == (168, 168)  # floor(160 / 0.95)


def test_clip_tokens_equal_the_library_s():
    preprocessor = OpenClipPreprocessor(Architecture("ViT-B-32", open_clip.get_model_config("ViT-B-32")), "exact")
    tokens = preprocessor.text(CAPTIONS)
    assert (tokens.dtype, tokens.shape) == (np.int32, (4, 77))
    np.testing.assert_array_equal(tokens, open_clip.get_tokenizer("ViT-B-32")(CAPTIONS).numpy())
    assert preprocessor.text([]).shape == (0, 77)


# Embedding


def pixel_rows(num_rows, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_rows, size, size, 3), dtype=np.uint8)


def test_clip_embeddings_equal_the_library_s(clip_tiny, library_clip):
    images = [noise(size) for size in SIZES[:4]]
    preprocessor = OpenClipPreprocessor(TINY, "exact")
    reference = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    with torch.inference_mode():
        image_rows = library_clip.encode_image(torch.stack([reference(image) for image in images])).numpy()
        text_rows = library_clip.encode_text(open_clip.SimpleTokenizer(context_length=12)(CAPTIONS)).numpy()
    assert (clip_tiny.dim, clip_tiny.has_text) == (24, True)
    ours = clip_tiny.encode_images(np.stack([preprocessor.image(image) for image in images]))
    np.testing.assert_allclose(ours, image_rows, rtol=0, atol=1e-6)
    np.testing.assert_allclose(clip_tiny.encode_texts(preprocessor.text(CAPTIONS)), text_rows, rtol=0, atol=1e-6)
    assert ours.dtype == np.float32


def test_timm_embeddings_equal_the_library_s_pooled_features(timm_tiny):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0).eval()
    pixels = pixel_rows(4, 160)
    with torch.inference_mode():
        expected = model(timm_tiny.normalize(torch.from_numpy(pixels))).numpy()
    assert (timm_tiny.dim, timm_tiny.has_text) == (expected.shape[1], False)
    np.testing.assert_allclose(timm_tiny.encode_images(pixels), expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 9), st.integers(0, 9))
def test_a_row_does_not_depend_on_how_many_rows_came_with_it(clip_tiny, num_rows, cut):
    pixels, tokens = pixel_rows(num_rows, 32), np.arange(num_rows * 12, dtype=np.int32).reshape(num_rows, 12)
    np.testing.assert_array_equal(clip_tiny.encode_images(pixels)[:cut], clip_tiny.encode_images(pixels[:cut]))
    np.testing.assert_array_equal(clip_tiny.encode_texts(tokens)[:cut], clip_tiny.encode_texts(tokens[:cut]))


def test_no_rows_give_no_rows(clip_tiny):
    assert clip_tiny.encode_images(pixel_rows(0, 32)).shape == (0, 24)
    assert clip_tiny.encode_texts(np.zeros((0, 12), dtype=np.int32)).shape == (0, 24)


def test_rows_in_shared_memory_are_read_only_and_that_is_fine(clip_tiny):
    pixels = pixel_rows(4, 32)
    expected = clip_tiny.encode_images(pixels)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(clip_tiny.encode_images(pixels), expected)


def test_encoding_leaves_the_process_as_it_was(clip_tiny):
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        clip_tiny.encode_images(pixel_rows(1, 32))
        clip_encoder.build_encoder(TINY, None, RUNTIME, seed=5)
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), generator)
    finally:
        torch.set_num_threads(threads)


def test_random_weights_depend_on_the_seed_alone(clip_tiny):
    pixels = pixel_rows(3, 32)
    same, other = (clip_encoder.build_encoder(TINY, None, RUNTIME, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(same.encode_images(pixels), clip_tiny.encode_images(pixels))
    assert not np.array_equal(other.encode_images(pixels), clip_tiny.encode_images(pixels))


def test_bfloat16_is_close_and_comes_back_as_float32(clip_tiny):
    low = clip_encoder.build_encoder(TINY, None, choose_runtime("bfloat16", 4, "cpu", 1), seed=1)
    pixels = pixel_rows(3, 32)
    rows, exact = low.encode_images(pixels), clip_tiny.encode_images(pixels)
    assert rows.dtype == np.float32
    assert not np.array_equal(rows, exact)
    np.testing.assert_allclose(rows, exact, rtol=0, atol=0.05 * np.abs(exact).max())


def test_precision_and_device_resolve():
    assert choose_runtime("auto", 8, "cpu", 3) == Runtime(torch.device("cpu"), False, 8, 3)
    assert choose_runtime("bfloat16", 8, "cpu", 1).autocast
    if not torch.cuda.is_available():
        assert choose_runtime("auto", 8, "auto", 1).device.type == "cpu"
        with pytest.raises(ModelError, match="got cuda"):
            choose_runtime("auto", 8, "cuda", 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_normalization_is_the_same_on_a_gpu(clip_tiny):
    gpu = clip_encoder.build_encoder(TINY, None, choose_runtime("float32", 4, "cuda", 1), seed=1)
    pixels = torch.from_numpy(pixel_rows(4, 32))
    assert torch.equal(gpu.normalize(pixels.cuda()).cpu(), clip_tiny.normalize(pixels))


# Weights


def test_weights_go_in_and_come_out(clip_tiny, library_clip):
    pixels = pixel_rows(3, 32)
    state = {**library_clip.state_dict(), "vocab_size": torch.tensor(49408)}
    loaded = clip_encoder.build_encoder(TINY, state, RUNTIME, seed=9)
    np.testing.assert_array_equal(loaded.encode_images(pixels), clip_tiny.encode_images(pixels))


def test_plain_clip_weights_fit_a_model_with_a_text_tower_of_its_own(clip_tiny, library_clip):
    custom = Architecture("tiny", {**TINY_CLIP, "custom_text": True})
    state = {
        key: value.reshape(-1) if key == "logit_scale" else value for key, value in library_clip.state_dict().items()
    }
    encoder = clip_encoder.build_encoder(custom, state, RUNTIME)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    np.testing.assert_allclose(encoder.encode_texts(tokens), clip_tiny.encode_texts(tokens), rtol=0, atol=1e-6)


def test_weights_of_another_clip_are_named_key_by_key(library_clip):
    deeper = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], "layers": 3}}
    with pytest.raises(ModelError, match=r"weights must be those of deep, .*Missing key.*resblocks\.2"):
        clip_encoder.build_encoder(Architecture("deep", deeper), library_clip.state_dict(), RUNTIME)


def test_an_unknown_key_of_an_architecture_is_refused():
    odd = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], "colour": 3}}
    with pytest.raises(ModelError, match=r"odd must be a model that open_clip can build, .*colour"):
        clip_encoder.build_encoder(Architecture("odd", odd), None, RUNTIME)


def test_timm_weights_are_loaded_without_their_classifier(timm_tiny):
    tiny = TimmSettings(library="timm", name="test_vit", weights="random", seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trained = timm.create_model("test_vit", num_classes=7).eval()
    loaded = timm_encoder.build_encoder(tiny, trained.state_dict(), RUNTIME)
    pixels = pixel_rows(4, 160)
    with torch.inference_mode():
        normalized = loaded.normalize(torch.from_numpy(pixels))
        expected = trained.forward_head(trained.forward_features(normalized), pre_logits=True).numpy()
    np.testing.assert_allclose(loaded.encode_images(pixels), expected, rtol=0, atol=1e-6)
    assert not np.allclose(loaded.encode_images(pixels), timm_tiny.encode_images(pixels))


def test_timm_weights_with_a_missing_or_a_foreign_key_are_refused():
    tiny = TimmSettings(library="timm", name="test_vit", weights="random")
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    partial = {key: value for key, value in state.items() if key != "norm.weight"}
    with pytest.raises(ModelError, match=r"weights must be those of test_vit, .*Missing key.*norm\.weight"):
        timm_encoder.build_encoder(tiny, partial, RUNTIME)
    with pytest.raises(ModelError, match=r"Unexpected key.*stranger"):
        timm_encoder.build_encoder(tiny, {**state, "stranger": torch.zeros(1)}, RUNTIME)


@pytest.mark.parametrize("name", ["no_such_vit", "test_vit.no_such_tag"])
def test_an_unknown_timm_name_is_refused(name):
    with pytest.raises(ModelError, match=f"name must be a model of timm, .*{name}"):
        TimmPreprocessor(TimmSettings(library="timm", name=name, weights="random"))


def test_images_only_models_have_no_text(timm_tiny):
    tiny = TimmSettings(library="timm", name="test_vit", weights="random")
    dots = PixelsSettings(library="pixels")
    for preprocessor in (TimmPreprocessor(tiny), PixelsPreprocessor(dots)):
        with pytest.raises(ModelError, match="text tower"):
            preprocessor.text(["a dog"])
    for encoder in (timm_tiny, PixelsEncoder(dots)):
        with pytest.raises(ModelError, match="text tower"):
            encoder.encode_texts(np.zeros((1, 3), dtype=np.int32))


# Pixels


def test_pixels_are_averaged_by_area_and_flattened_row_by_row():
    image = Image.fromarray(np.array([[0, 100, 8, 8], [100, 200, 8, 8]], dtype=np.uint8)).convert("RGB")
    two = PixelsSettings(library="pixels", size=2)
    pixels = PixelsPreprocessor(two).image(image)
    np.testing.assert_array_equal(pixels[..., 0], [[50, 8], [150, 8]])
    encoder = PixelsEncoder(two)
    rows = encoder.encode_images(pixels[None])
    assert (encoder.dim, rows.dtype) == (12, np.float32)
    np.testing.assert_array_equal(rows, [[50] * 3 + [8] * 3 + [150] * 3 + [8] * 3])


def test_an_image_of_the_right_size_stays_itself():
    settings = PixelsSettings(library="pixels", size=28, decode="fast")
    preprocessor = PixelsPreprocessor(settings)
    np.testing.assert_array_equal(preprocessor.image(noise((28, 28))), np.asarray(noise((28, 28))))
    assert preprocessor.draft == (28, 28)


def test_black_gets_the_direction_of_grey():
    encoder = PixelsEncoder(PixelsSettings(library="pixels", size=4))
    black, grey = encoder.encode_images(np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 7, np.uint8)]))
    np.testing.assert_array_equal(black * 7, grey)
    assert encoder.encode_images(np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 48)


def test_colours_ycbcr_centres_brightness_and_halves_colour():
    encoder = PixelsEncoder(PixelsSettings(library="pixels", size=2, colours="ycbcr"))
    levels = np.array([[[10, 128, 130], [20, 128, 120]], [[30, 100, 128], [60, 255, 128]]], dtype=np.uint8)
    row = [10 - 30 + 40, 0, 1, 20 - 30 + 40, 0, -4, 30 - 30 + 40, -14, 0, 60 - 30 + 40, 63.5, 0]
    rows = encoder.encode_images(levels[None])
    assert (encoder.dim, rows.dtype) == (12, np.float32)
    np.testing.assert_array_equal(rows, [row])
    assert encoder.encode_images(np.zeros((0, 2, 2, 3), np.uint8)).shape == (0, 12)


def test_colours_ycbcr_are_those_of_jpeg_and_a_plain_image_has_a_direction():
    settings = PixelsSettings(library="pixels", size=2, colours="ycbcr")
    images = [Image.new("RGB", (9, 5), colour) for colour in ((255, 0, 0), (0, 0, 0), (255, 255, 255))]
    pixels = np.stack([PixelsPreprocessor(settings).image(image) for image in images])
    np.testing.assert_array_equal(pixels[:, 0, 0], [[76, 84, 255], [0, 128, 128], [255, 128, 128]])
    red, black, white = PixelsEncoder(settings).encode_images(pixels)
    np.testing.assert_array_equal(red, [40, -22, 63.5] * 4)
    np.testing.assert_array_equal(black, [40, 0, 0] * 4)
    np.testing.assert_array_equal(white, black)


# Settings


def test_settings_are_told_apart_by_library():
    parse = TypeAdapter(ModelSettings).validate_python
    assert parse({"library": "pixels", "size": 8}) == PixelsSettings(library="pixels", size=8)
    assert isinstance(parse({"library": "timm", "name": "test_vit", "weights": "random"}), TimmSettings)
    clip = parse({"library": "open_clip", "name": "ViT-B-32", "weights": "openai"})
    assert isinstance(clip, OpenClipSettings)
    assert (clip.precision, clip.batch_size, clip.decode) == ("auto", 32, "exact")


@pytest.mark.parametrize(
    "wrong",
    [
        {"library": "keras"},
        {"library": "pixels", "size": 0},
        {"library": "pixels", "name": "x"},
        {"library": "pixels", "colours": "hsv"},
        {"library": "timm", "name": "test_vit"},
        {"library": "timm", "name": "test_vit", "weights": "random", "batch_size": 0},
        {"library": "open_clip", "name": "ViT-B-32", "weights": "random", "precision": "fp16"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(ModelSettings).validate_python(wrong)
