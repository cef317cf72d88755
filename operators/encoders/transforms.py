"""A library's reference image transform, cut where pixels stop being bytes.

Resizing and cropping stay on the decoding side and yield uint8; scaling to [0, 1] and normalising move to the encoder.
Nothing is reimplemented, so the two halves together equal the whole bit for bit.

Legend: H height, W width, C colours (RGB).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from operators import torchvision_ops  # noqa: F401

# isort: split
from torchvision.transforms import Compose, Normalize, ToTensor


class ReferenceTransform:
    """Both halves of a transform that ends with `ToTensor` and `Normalize`, as open_clip's and timm's do.

    Attributes:
        mean, std: of the normalisation, one number a colour, for pixels in [0, 1].
        resize_size: (width, height) that the first step resizes to, or covers.
    """

    def __init__(self, transform: Any) -> None:
        *steps, to_tensor, normalize = transform.transforms
        assert isinstance(to_tensor, ToTensor), to_tensor
        assert isinstance(normalize, Normalize), normalize
        self._resize_and_crop = Compose(steps)
        self.mean = tuple(float(value) for value in normalize.mean)
        self.std = tuple(float(value) for value in normalize.std)
        size = steps[0].size
        height, width = (size, size) if isinstance(size, int) else size
        self.resize_size = (int(width), int(height))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The first half: (H, W, C) of the model's input size, from an image in mode RGB."""
        return np.asarray(self._resize_and_crop(image))
