"""Augmentation of images that are decoded and of the model's size, and the draws that it goes by.

A draw belongs to one appearance of one sample (its uid, the epoch, the repeat) and to a name, so an image is changed
in the same way whoever deals it, and another way the next time it is seen.

Legend: N samples, H height, W width, C colours (RGB).
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.hashing import keyed_hash

Keys = NDArray[np.uint64]
Pixels = NDArray[np.uint8]

_EPOCH_BITS = np.uint64(32)


class Augment(BaseModel):
    """What is changed of an image each time it is seen. Every change is drawn evenly from its range.

    Attributes:
        padding: pixels by which the image is mirrored at its borders before a window of its size is cut out again:
            shifts small images, which cutting and enlarging would blur.
        scale: share of the area that is cut out and enlarged again; [1, 1] cuts nothing.
        aspect: width by height of what is cut out; 1.33 allows 3/4 to 4/3.
        flip: whether half of the images are mirrored left to right. Captions that say left or right become wrong.
        brightness: factor 1 - b to 1 + b.
        contrast: the same for the differences from the image's mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    padding: int = Field(default=0, ge=0, le=64)
    scale: tuple[float, float] = (1.0, 1.0)
    aspect: float = Field(default=1.0, ge=1, le=4)
    flip: bool = False
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be [low, high] with 0 < low <= high <= 1, got [{low}, {high}]")
        return self


def appearance_keys(
    high_N: Keys, low_N: Keys, epoch_N: NDArray[np.int64], repeat_N: NDArray[np.int64], seed: int
) -> Keys:
    """What all draws for an appearance of a sample go by.

    Args:
        high_N: the uids' high halves.
        low_N: their low halves.
        epoch_N: in which epoch it is seen, below 2^31.
        repeat_N: for which time in that epoch, from 0.
        seed: of the run.
    """
    times_N = (epoch_N.astype(np.uint64) << _EPOCH_BITS) | repeat_N.astype(np.uint64)
    return keyed_hash(keyed_hash(high_N, low_N, seed, "training sample"), times_N, seed, "training appearance")


def draw(keys_N: Keys, name: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each appearance, another one for each name."""
    hash_N = keyed_hash(keys_N, np.zeros_like(keys_N), 0, f"draw {name}")
    return (hash_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def augment(pixels_NHWC: Pixels, keys_N: Keys, settings: Augment) -> Pixels:
    """Changes each image as its key says.

    Args:
        pixels_NHWC: uint8; left as it is.
        keys_N: of the appearances.
        settings: what is changed.

    Returns:
        uint8 of the same shape.
    """
    if settings.padding:
        pixels_NHWC = _shift(pixels_NHWC, keys_N, settings.padding)
    if settings.scale != (1.0, 1.0) or settings.aspect != 1:
        pixels_NHWC = _cut(pixels_NHWC, keys_N, settings)
    if settings.flip:
        flipped_N = draw(keys_N, "flip") < 0.5
        pixels_NHWC = np.where(flipped_N[:, None, None, None], pixels_NHWC[:, :, ::-1], pixels_NHWC)
    if settings.brightness or settings.contrast:
        pixels_NHWC = _relight(pixels_NHWC, keys_N, settings)
    return pixels_NHWC


def _shift(pixels_NHWC: Pixels, keys_N: Keys, padding: int) -> Pixels:
    height, width = pixels_NHWC.shape[1:3]
    padded = np.pad(pixels_NHWC, [(0, 0), (padding, padding), (padding, padding), (0, 0)], mode="symmetric")
    top_N, left_N = (np.floor(draw(keys_N, name) * (2 * padding + 1)).astype(np.intp) for name in ("top", "left"))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))  # type: ignore[call-overload]
    return np.ascontiguousarray(windows[np.arange(len(padded)), top_N, left_N].transpose(0, 2, 3, 1))


def _cut(pixels_NHWC: Pixels, keys_N: Keys, settings: Augment) -> Pixels:
    height, width = pixels_NHWC.shape[1:3]
    low, high = settings.scale
    area_N = low + draw(keys_N, "area") * (high - low)
    aspect_N = settings.aspect ** (2 * draw(keys_N, "aspect") - 1)
    wide_N = np.minimum(np.sqrt(area_N * aspect_N), 1) * width
    tall_N = np.minimum(np.sqrt(area_N / aspect_N), 1) * height
    left_N = draw(keys_N, "cut left") * (width - wide_N)
    top_N = draw(keys_N, "cut top") * (height - tall_N)
    boxes_N4 = np.stack([left_N, top_N, left_N + wide_N, top_N + tall_N], axis=1)
    cut_NHWC = np.empty_like(pixels_NHWC)
    for i, (pixels_HWC, box) in enumerate(zip(pixels_NHWC, boxes_N4.tolist(), strict=True)):
        image = Image.fromarray(pixels_HWC)
        cut_NHWC[i] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=tuple(box)))
    return cut_NHWC


def _relight(pixels_NHWC: Pixels, keys_N: Keys, settings: Augment) -> Pixels:
    def factors(name: str, spread: float) -> NDArray[np.float32]:
        drawn_N = 1 + spread * (2 * draw(keys_N, name) - 1)
        return drawn_N.astype(np.float32)[:, None, None, None]

    lit = pixels_NHWC.astype(np.float32) * factors("brightness", settings.brightness)
    mean_N111 = lit.mean(axis=(1, 2, 3), keepdims=True)
    lit = mean_N111 + (lit - mean_N111) * factors("contrast", settings.contrast)
    relit: Pixels = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
    return relit
