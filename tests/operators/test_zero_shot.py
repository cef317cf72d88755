"""Class weights and predictions: by hand, against a naive loop, and at ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip

from operators.embeddings import to_unit_float16
from operators.encoders.open_clip import Architecture, OpenClipPreprocessor, build_encoder
from operators.encoders.torch_encoder import choose_runtime
from operators.errors import InputError, ModelError
from operators.evaluation.zero_shot import class_prompts, class_weights, classify


def rows(count, dims, seed=0):
    return to_unit_float16(np.random.default_rng(seed).standard_normal((count, dims)))[0]


def test_prompts_of_a_class_stand_together():
    assert class_prompts(["cat", "{c} dog"], ["a {c}.", "{c}, {c}"]) == [
        "a cat.",
        "cat, cat",
        "a {c} dog.",
        "{c} dog, {c} dog",
    ]


def test_a_template_needs_a_place_for_the_class():
    with pytest.raises(InputError, match=r"a template must hold \{c\} where the class goes, got 'a photo'"):
        class_prompts(["cat"], ["a {c}", "a photo"])


def test_a_weight_is_the_unit_mean_of_unit_prompts():
    prompts_PD = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float16)
    weights_KD = class_weights(prompts_PD, ["a", "b"])
    np.testing.assert_allclose(weights_KD, [[0.5**0.5, 0.5**0.5], [0, 1]], atol=2**-28)
    np.testing.assert_array_equal(weights_KD * 2**28, np.rint(weights_KD * 2**28))


def test_weights_are_those_of_open_clip():
    text_cfg = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision_cfg = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    architecture = Architecture("tiny", {"embed_dim": 16, "vision_cfg": vision_cfg, "text_cfg": text_cfg})
    library = open_clip.CLIP(**architecture.model_cfg).eval()
    encoder = build_encoder(architecture, library.state_dict(), choose_runtime("float32", 4, "cpu", 1))
    classes, templates = ["cat", "dog house", "sea"], ["a photo of a {c}.", "{c} at night", "the {c}"]
    tokens = OpenClipPreprocessor(architecture, "exact").text(class_prompts(classes, templates))
    weights_KD = class_weights(to_unit_float16(encoder.encode_texts(tokens))[0], classes)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    theirs = [template.replace("{c}", "{}") for template in templates]
    with torch.inference_mode():
        expected_DK = open_clip.build_zero_shot_classifier(library, tokenizer, classes, theirs)
    np.testing.assert_allclose(weights_KD, expected_DK.T.numpy(), atol=3e-4)


def test_prompts_that_cancel_out_have_no_class():
    with pytest.raises(ModelError, match=r"prompts that cancel out for 'b'"):
        class_weights(np.array([[1, 0], [1, 0], [1, 0], [-1, 0]], np.float16), ["a", "b"])


def test_ties_go_to_the_lowest_class():
    weights_KD = np.array([[1.0, 0], [1.0, 0], [0, 1.0]])
    prediction_N, rank_N = classify(np.array([[1, 0]] * 3, np.float16), weights_KD, np.array([0, 1, 2]))
    np.testing.assert_array_equal(prediction_N, [0, 0, 0])
    np.testing.assert_array_equal(rank_N, [0, 1, 2])


def test_a_row_that_was_not_embedded_is_wrong():
    x_ND = np.array([[1, 0], [0, 0]], np.float16)
    prediction_N, rank_N = classify(x_ND, np.eye(2), np.array([0, 0]), x_ND.any(axis=1))
    np.testing.assert_array_equal(prediction_N, [0, -1])
    np.testing.assert_array_equal(rank_N, [0, 2])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 100))
def test_it_equals_a_sort_of_each_row(num_rows, num_classes, seed):
    x_ND = rows(num_rows, 5, seed)
    weights_KD = class_weights(rows(num_classes * 2, 5, seed + 1), [str(k) for k in range(num_classes)])
    label_N = np.random.default_rng(seed).integers(0, num_classes, num_rows)
    prediction_N, rank_N = classify(x_ND, weights_KD, label_N)
    for n in range(num_rows):
        scores = [sum(float(a) * float(b) for a, b in zip(x_ND[n], w, strict=True)) for w in weights_KD]
        order = sorted(range(num_classes), key=lambda k: (-scores[k], k))
        assert (prediction_N[n], rank_N[n]) == (order[0], order.index(label_N[n]))


def test_blocks_do_not_matter(monkeypatch):
    x_ND, weights_KD, label_N = rows(100, 8), class_weights(rows(9, 8, 1), "abcdefghi"), np.arange(100) % 9
    whole = classify(x_ND, weights_KD, label_N)
    monkeypatch.setattr("operators.evaluation.zero_shot._BLOCK_ROWS", 7)
    for one, other in zip(whole, classify(x_ND, weights_KD, label_N), strict=True):
        np.testing.assert_array_equal(one, other)
