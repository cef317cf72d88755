import contextlib
import io
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from operators.images import Header, UnusableImage, decode, image_hash
from operators.rejects import Reason

MAX_PIXELS = 10_000
SOLID_RGB = (200, 100, 50)


def encode(image, **save):
    buffer = io.BytesIO()
    image.save(buffer, **save)
    return buffer.getvalue()


def gradient(width=40, height=30):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5, y * 7, x + y], axis=2).astype(np.uint8))


def pixels(data, **kwargs):
    return np.asarray(decode(data, max_pixels=MAX_PIXELS, **kwargs).image)


def rejection(data, max_pixels=MAX_PIXELS):
    with pytest.raises(UnusableImage) as caught:
        decode(data, max_pixels=max_pixels)
    return caught.value


@pytest.mark.parametrize(
    ("format_name", "ext"),
    [("PNG", "png"), ("BMP", "bmp"), ("TIFF", "tif"), ("PPM", "ppm"), ("WEBP", "webp"), ("JPEG2000", "jp2")],
)
def test_lossless_formats_come_back_whole(format_name, ext):
    save = {"lossless": True} if format_name == "WEBP" else {}
    decoded = decode(encode(gradient(), format=format_name, **save), max_pixels=MAX_PIXELS)
    assert decoded.header == Header(40, 30, ext)
    assert decoded.image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(gradient()))


@pytest.mark.parametrize(("format_name", "ext"), [("JPEG", "jpg"), ("MPO", "jpg"), ("GIF", "gif"), ("AVIF", "avif")])
def test_lossy_formats_keep_size_and_colour(format_name, ext):
    solid = Image.new("RGB", (16, 8), SOLID_RGB)
    decoded = decode(encode(solid, format=format_name), max_pixels=MAX_PIXELS)
    assert decoded.header == Header(16, 8, ext)
    assert np.abs(np.asarray(decoded.image).astype(int) - SOLID_RGB).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes_become_rgb_as_pillow_converts_them(mode):
    image = gradient().convert(mode)
    expected = image.convert("RGB")
    np.testing.assert_array_equal(pixels(encode(image, format="PNG")), np.asarray(expected))


def test_alpha_is_dropped_not_blended():
    image = Image.new("RGBA", (4, 4), (*SOLID_RGB, 0))
    assert (pixels(encode(image, format="PNG")) == SOLID_RGB).all()


def test_palette_with_transparent_bytes_keeps_its_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *SOLID_RGB])
    assert (pixels(encode(image, format="PNG", transparency=b"\x00\x80")) == SOLID_RGB).all()


def test_cmyk_jpeg_is_close_to_its_colour():
    image = Image.new("RGB", (16, 16), SOLID_RGB).convert("CMYK")
    assert np.abs(pixels(encode(image, format="JPEG", quality=100)).astype(int) - SOLID_RGB).max() <= 3


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte(format_name):
    grey = np.array([[0, 255, 256], [0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)
    rgb = pixels(encode(Image.fromarray(grey), format=format_name))
    np.testing.assert_array_equal(rgb[..., 0], [[0, 0, 1], [127, 128, 255]])
    np.testing.assert_array_equal(rgb[..., 0], rgb[..., 2])


def test_thirty_two_bit_grey_is_read_as_sixteen_and_clipped():
    grey = np.array([[-5, 0x8000, 0x12345]], dtype=np.int32)
    assert pixels(encode(Image.fromarray(grey), format="TIFF"))[0, :, 0].tolist() == [0, 128, 255]


def test_only_the_first_frame_of_an_animation_counts():
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = encode(first, format="GIF", save_all=True, append_images=[second])
    assert (pixels(data) == (255, 0, 0)).all()


def test_exif_orientation_is_ignored_as_in_the_reference_transforms():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encode(gradient(), format="JPEG", exif=exif), max_pixels=MAX_PIXELS).image.size == (40, 30)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"a text that calls itself .jpg", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF\n"]
)
def test_what_is_no_image_is_undecodable(data):
    error = rejection(data)
    assert (error.reason, error.header) == (Reason.UNDECODABLE_IMAGE, None)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_image_cut_in_half_is_undecodable(format_name):
    data = encode(gradient(90, 90), format=format_name)
    assert rejection(data[: len(data) // 2]).reason is Reason.UNDECODABLE_IMAGE


def test_a_truncated_image_still_tells_its_size():
    data = encode(gradient(), format="PNG")
    assert rejection(data[:-30]).header == Header(40, 30, "png")


def test_size_is_judged_by_the_header_before_any_pixel_is_read():
    data = encode(gradient(), format="PNG")
    assert decode(data, max_pixels=1200).image.size == (40, 30)
    error = rejection(data[:100], max_pixels=1199)  # its pixels are missing, and nobody looks
    assert (error.reason, error.header) == (Reason.IMAGE_TOO_LARGE, Header(40, 30, "png"))
    assert str(error) == "image must have at most 1199 pixels, got 40 x 30"


def test_a_decompression_bomb_is_too_large_without_a_warning():
    bomb = bytearray(encode(Image.new("L", (1, 1)), format="BMP"))
    bomb[18:26] = (30_000).to_bytes(4, "little") * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rejection(bytes(bomb), max_pixels=100_000_000).reason is Reason.IMAGE_TOO_LARGE


def test_sloppy_files_give_the_same_verdict_whatever_the_warning_filters():
    data = encode(gradient(), format="MPO", save_all=True, append_images=[gradient()])
    data = data.replace(data[data.index(b"MPF\0") + 4 :][:4], b"\0\0\0\0", 1)  # the index of its pictures
    with pytest.warns(UserWarning, match="malformed MPO"):
        expected = np.asarray(Image.open(io.BytesIO(data)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(data), expected)


def test_draft_is_smaller_but_covers_what_was_asked():
    data = encode(gradient(96, 64), format="JPEG")
    decoded = decode(data, max_pixels=MAX_PIXELS, draft=(20, 20))
    assert decoded.header == Header(96, 64, "jpg")
    assert decoded.image.size == (48, 32)  # a third of 64 would do; the DCT offers halves
    assert decode(data, max_pixels=MAX_PIXELS, draft=(96, 65)).image.size == (96, 64)


def test_draft_leaves_other_formats_alone():
    data = encode(gradient(), format="PNG")
    np.testing.assert_array_equal(pixels(data, draft=(4, 4)), np.asarray(gradient()))


def test_unusable_image_survives_pickling():
    error = pickle.loads(pickle.dumps(rejection(b"no image")))  # noqa: S301
    assert (error.reason, error.header) == (Reason.UNDECODABLE_IMAGE, None)
    assert str(error).startswith("image must decode, got UnidentifiedImageError")


def test_image_hash_is_blake2b_128():
    assert image_hash(b"").hex() == "cae66941d9efbd404e4d88758ea67670"
    assert image_hash(b"a") != image_hash(b"b")


@given(st.data())
def test_flipped_bytes_either_decode_or_are_rejected_with_a_reason(data):
    original = encode(gradient(), format=data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"])))
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnusableImage):  # and nothing else
        assert decode(bytes(damaged), max_pixels=MAX_PIXELS).image.mode == "RGB"
