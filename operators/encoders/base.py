"""The two halves of a model. Imports no model library, so that a process pays only for those that it uses.

A `Preprocessor` needs no weights and runs where images are decoded; an `Encoder` owns the weights. What travels between
them is small: uint8 pixels and int32 tokens.

Legend: N rows, H height, W width, C colours (RGB), L tokens, D dimensions.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from operators.errors import ModelError

Device = Literal["auto", "cpu", "cuda"]


class Preprocessor(Protocol):
    """The half without weights.

    Attributes:
        draft: the (width, height) below which a fast JPEG decode would lose detail; None where decoding is exact.
    """

    draft: tuple[int, int] | None

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """The reference transform up to, and without, its conversion to floats: (H, W, C) of the model's input size."""

    def text(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """Token ids (N, L). Raises ModelError where the model reads no text."""


class Encoder(Protocol):
    """The half with weights. Rows are not unit vectors yet: `embeddings.to_unit_float16` makes them so."""

    dim: int
    has_text: bool

    def encode_images(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeds preprocessed images: (N, D)."""

    def encode_texts(self, tokens_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        """Embeds tokenised captions: (N, D). Raises ModelError where the model reads no text."""


def no_text_tower() -> ModelError:
    """The error of a model that is asked for text and reads images only."""
    return ModelError("model must have a text tower where captions are embedded, got one that reads images only")
