"""The pixels themselves as an embedding: the baseline for small images, and a model that needs no weights.

Legend: N rows, H height, W width, C colours (RGB), D dimensions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from operators.encoders.base import no_text_tower
from operators.encoders.settings import PixelsSettings


class PixelsPreprocessor:
    """Resizes by area average (Pillow's box filter), ignoring the aspect ratio; an image of that size stays itself."""

    def __init__(self, settings: PixelsSettings) -> None:
        self._size = (settings.size, settings.size)
        self.draft = self._size if settings.decode == "fast" else None

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(size, size, C) uint8."""
        return np.asarray(image.resize(self._size, Image.Resampling.BOX))

    def text(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Raises ModelError: pixels have no text tower."""
        raise no_text_tower()


class PixelsEncoder:
    """Flattens. The levels 0 to 255 are kept, since scaling a row to unit length takes care of their scale."""

    has_text = False

    def __init__(self, settings: PixelsSettings) -> None:
        self.dim = settings.size * settings.size * 3

    def encode_images(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D), in the order row, column, colour. Black has no direction and gets that of grey."""
        x_ND = pixels_NHWC.reshape(len(pixels_NHWC), self.dim).astype(np.float32)
        x_ND[~x_ND.any(axis=1)] = 1.0
        return x_ND

    def encode_texts(self, tokens_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        """Raises ModelError: pixels have no text tower."""
        raise no_text_tower()
