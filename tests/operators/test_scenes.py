"""Scenes, how they are painted, and how they are edited."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import label as label_blobs

from operators.drawing import render
from operators.edits import EDITS, IMAGE_FORMATS, decode_image, edit_image, encode_image
from operators.hashing import generator
from operators.scenes import (
    BACKGROUNDS,
    COLOURS,
    CONCEPTS,
    PLACEMENTS,
    SHAPES,
    Concept,
    Scene,
    draw_scene,
    mirror,
    write_caption,
    zipf_weights,
)

RED_CIRCLE = Scene(Concept("red", "circle"), 1, "large", "in the middle", "plain", "light grey")


def painted(scene, width=64, height=64, label="paint"):
    return np.asarray(render(scene, width, height, generator(0, label)), dtype=int)


def distance(pixels_HWC, colour):
    return np.abs(pixels_HWC - np.array(colour)).max(axis=-1)


def captions(scene, count=200):
    rng = generator(0, "captions")
    return {write_caption(scene, rng) for _ in range(count)}


def test_zipf_weights_by_hand():
    np.testing.assert_allclose(zipf_weights(3, 1.0), [6 / 11, 3 / 11, 2 / 11])
    np.testing.assert_allclose(zipf_weights(4, 0.0), [0.25] * 4)
    assert zipf_weights(1, 2.0) == [1.0]


def test_a_concept_reads_as_words():
    assert str(Concept("red", "circle")) == "red circle"
    assert len(set(map(str, CONCEPTS))) == len(COLOURS) * len(SHAPES) == 120


def test_captions_tell_what_the_scene_shows():
    scene = Scene(Concept("orange", "arrow"), 1, "", "at the top", "grainy", "grey")
    told = captions(scene)
    assert "an orange arrow on a grainy grey background" in told
    assert "There is an orange arrow at the top." in told
    assert "orange arrow" in told
    assert len(told) == 26  # thirteen wordings, with and without a capital and a full stop


def test_captions_use_the_plural():
    told = captions(Scene(Concept("red", "cross"), 3, "small", "in a row", "plain", "navy"))
    assert "three small red crosses in a row on a plain navy background" in told
    assert "there are three small red crosses in a row" in told


def test_mirror_swaps_sides_only():
    left = Scene(Concept("red", "star"), 1, "", "in the top left corner", "plain", "grey")
    assert mirror(left).placement == "in the top right corner"
    assert mirror(mirror(left)) == left
    assert mirror(RED_CIRCLE) == RED_CIRCLE
    assert all(mirror(Scene(left.concept, 1, "", name, "plain", "grey")).placement in PLACEMENTS for name in PLACEMENTS)


@given(st.sampled_from(CONCEPTS), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_scene_is_painted_and_told(concept, seed):
    rng = generator(seed, "scene")
    scene = draw_scene(concept, rng)
    contrast = np.linalg.norm(np.subtract(COLOURS[concept.colour], BACKGROUNDS[scene.background]))
    assert contrast >= 105
    assert 1 <= scene.count <= 6
    caption = write_caption(scene, rng).lower()
    assert f"{concept.colour} {concept.shape if scene.count == 1 else SHAPES[concept.shape]}" in caption
    pixels_HWC = np.asarray(render(scene, 48, 32, rng), dtype=int)
    assert pixels_HWC.shape == (32, 48, 3)
    near = distance(pixels_HWC, COLOURS[concept.colour]) < 40
    assert near.sum() >= 8, "the colour must be visible even in a small picture"


def test_painting_repeats_and_depends_on_the_generator():
    assert np.array_equal(painted(RED_CIRCLE), painted(RED_CIRCLE))
    assert not np.array_equal(painted(RED_CIRCLE), painted(RED_CIRCLE, label="other"))


def test_a_large_circle_covers_its_area():
    ink = distance(painted(RED_CIRCLE, 200, 200), COLOURS["red"]) < 45
    radius = 0.6 * 200 / 2 * 0.98 * 0.96  # the box, half a cell, the size word, the outline
    assert ink.sum() == pytest.approx(np.pi * radius**2, rel=0.02)


@pytest.mark.parametrize("shape", ["ring", "moon"])
def test_holes_show_the_background(shape):
    pixels_HWC = painted(Scene(Concept("red", shape), 1, "large", "in the middle", "plain", "light grey"), 200, 200)
    ink = distance(pixels_HWC, COLOURS["red"]) < 45
    assert not ink[100, 105:110].any()
    assert ink[95:105].any()


@pytest.mark.parametrize("count", range(1, 7))
def test_objects_are_as_many_as_told_and_apart(count):
    for turn in range(10):
        scene = Scene(Concept("red", "square"), count, "large", "scattered about", "plain", "mint")
        ink = distance(painted(scene, 240, 180, label=str(turn)), COLOURS["red"]) < 60
        assert label_blobs(ink)[1] == count


def test_placement_is_where_the_ink_is():
    rows, columns = np.nonzero(
        distance(
            painted(Scene(Concept("blue", "star"), 1, "", "in the top right corner", "shaded", "beige")),
            COLOURS["blue"],
        )
        < 60
    )
    assert rows.max() < 32 <= columns.min()


@pytest.mark.parametrize("ext", IMAGE_FORMATS)
def test_encoding_is_deterministic(ext):
    image = Image.fromarray(painted(RED_CIRCLE).astype(np.uint8))
    data = encode_image(image, ext, 90)
    assert data == encode_image(image, ext, 90)
    assert decode_image(data).size == (64, 64)
    error = np.abs(np.asarray(decode_image(data), dtype=int) - np.asarray(image)).mean()
    assert error == 0 if ext == "png" else error < 3


@pytest.mark.parametrize("edit", EDITS)
def test_edits_keep_the_picture_recognisable(edit):
    scene = Scene(Concept("green", "heart"), 2, "large", "on the left", "striped", "beige")
    image = Image.fromarray(painted(scene, 120, 90).astype(np.uint8))
    edited = edit_image(image, edit, generator(0, edit))
    before, after = np.asarray(image, dtype=int), np.asarray(edited.resize(image.size), dtype=int)
    if edit == "mirrored":
        after = after[:, ::-1]
    assert np.abs(before - after).mean() < 32
    assert (edit in ("recompressed", "mirrored")) == np.array_equal(before, after)


def test_resizing_goes_up_for_small_pictures_only():
    small, large = Image.new("RGB", (40, 160)), Image.new("RGB", (400, 300))
    assert edit_image(small, "resized", generator(0)).size > small.size
    assert edit_image(large, "resized", generator(0)).size < large.size
