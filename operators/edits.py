"""What the web does to a picture on its way from one page to the next: the edits that make a near-duplicate."""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

EDITS = ("recompressed", "resized", "cropped", "brightened", "mirrored")
IMAGE_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
"""File extension -> Pillow's name of the format."""

_SMALL = 64
"""A side below this is resized upwards, since no picture of a pool is narrower than 32 pixels."""


def encode_image(image: Image.Image, ext: str, quality: int) -> bytes:
    """The file's bytes. The same pixels and the same Pillow give the same bytes; PNG ignores the quality (1..95)."""
    buffer = io.BytesIO()
    image.save(buffer, IMAGE_FORMATS[ext], quality=quality)
    return buffer.getvalue()


def decode_image(data: bytes) -> Image.Image:
    """The RGB pixels of a file's bytes."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def edit_image(image: Image.Image, edit: str, rng: np.random.Generator) -> Image.Image:
    """One edit of `EDITS`, its strength drawn at random within what a viewer would still call the same picture.

    `recompressed` leaves the pixels to the encoder; `cropped` scales the crop back to the size of the original.
    """
    width, height = image.size
    match edit:
        case "resized":
            scale = rng.uniform(1.2, 1.7) if min(image.size) < _SMALL else rng.uniform(0.5, 0.85)
            return image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        case "cropped":
            kept = rng.uniform(0.86, 0.94)
            left, top = rng.uniform(0, 1 - kept, size=2)
            box = (left * width, top * height, (left + kept) * width, (top + kept) * height)
            return image.resize(image.size, Image.Resampling.LANCZOS, box=box)
        case "brightened":
            return ImageEnhance.Brightness(image).enhance(rng.uniform(1.08, 1.22))
        case "mirrored":
            return ImageOps.mirror(image)
    assert edit == "recompressed", edit
    return image
