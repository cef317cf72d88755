"""The pixels themselves as an embedding: the baseline for small images, and a model that needs no weights.

Legend: N rows, H height, W width, P pixels of an image, C colours (RGB or YCbCr), D dimensions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from operators.encoders.base import no_text_tower
from operators.encoders.settings import PixelsSettings

_BASE_LUMA = 40.0
"""What the mean luma becomes: a contrast that every image has, so that the noise in one with little else stays small.

(Measured on three pools of 3,000 with truth, at 16 x 16: the recall of recompressed and resized images, at a precision
of at least 0.98, is 0.77 to 0.97 without it, 0.98 to 1.00 with 40, and 0.96 to 0.98 with 60.)
"""


class PixelsPreprocessor:
    """Resizes by area average (Pillow's box filter), ignoring the aspect ratio; an image of that size stays itself."""

    def __init__(self, settings: PixelsSettings) -> None:
        self._size = (settings.size, settings.size)
        self._mode = "RGB" if settings.colours == "rgb" else "YCbCr"
        self.draft = self._size if settings.decode == "fast" else None

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(size, size, C) uint8."""
        return np.asarray(image.resize(self._size, Image.Resampling.BOX).convert(self._mode))

    def text(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Raises ModelError: pixels have no text tower."""
        raise no_text_tower()


class PixelsEncoder:
    """Flattens. Scaling a row to unit length takes care of the scale of its levels."""

    has_text = False

    def __init__(self, settings: PixelsSettings) -> None:
        self.dim = settings.size * settings.size * 3
        self._balanced = settings.colours == "ycbcr"

    def encode_images(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D), in the order row, column, colour. Black in RGB has no direction and gets that of grey."""
        x_ND = pixels_NHWC.reshape(len(pixels_NHWC), self.dim).astype(np.float32)
        if self._balanced:
            _balance(x_ND.reshape(len(x_ND), self.dim // 3, 3))
        x_ND[~x_ND.any(axis=1)] = 1.0
        return x_ND

    def encode_texts(self, tokens_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        """Raises ModelError: pixels have no text tower."""
        raise no_text_tower()


def _balance(levels_NPC: NDArray[np.float32]) -> None:
    """Moves, in place, the mean luma to its base and grey to zero colour, and halves the colour differences.

    JPEG and WebP keep a quarter of the colour differences and quantise them more coarsely, so they differ the most
    between copies. Means of whole numbers are exact sums divided once: the same on every machine.
    """
    levels_NPC[:, :, 0] -= levels_NPC[:, :, 0].mean(axis=1, keepdims=True, dtype=np.float64) - _BASE_LUMA
    levels_NPC[:, :, 1:] -= 128
    levels_NPC[:, :, 1:] /= 2
