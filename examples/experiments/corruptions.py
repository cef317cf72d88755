"""Images made worse in five ways, after the kinds of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Legend: H height, W width, C colours (RGB).
"""

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from PIL import Image, ImageEnhance, ImageFilter

from operators.hashing import generator

Corruption = Callable[[Image.Image, np.random.Generator], Image.Image]


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels_HWC = np.asarray(image) + rng.normal(0, 20, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.rint(pixels_HWC), 0, 255).astype(np.uint8))


def _blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1))


def _contrast(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(0.35)


def _pixelate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return half.resize(image.size, Image.Resampling.NEAREST)


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=10)
    return Image.open(buffer).convert("RGB")


CORRUPTIONS: dict[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}


def corrupted(table: pa.Table, kind: str, seed: int = 0) -> pa.Table:
    """A table of images with every image made worse, kept without further loss.

    Args:
        table: with `jpg`, the encoded images, and `index`, by which what is random is drawn.
        kind: one of `CORRUPTIONS`.
        seed: of the draws.
    """
    images = []
    for index, data in zip(table["index"].to_pylist(), table["jpg"].to_pylist(), strict=True):
        worse = CORRUPTIONS[kind](Image.open(io.BytesIO(data)).convert("RGB"), generator(seed, kind, str(index)))
        buffer = io.BytesIO()
        worse.save(buffer, "PNG")
        images.append(buffer.getvalue())
    return table.set_column(table.column_names.index("jpg"), "jpg", pa.array(images, pa.binary()))
