"""Encoded image bytes to RGB pixels, with a typed reason for every image that cannot be used.

The decoder is Pillow's, with three choices made here, all of them process-wide facts of Pillow:

- Only formats on a short list are tried. Others are rarely photographs, and some (EPS) would start a program.
- Pillow's decompression-bomb check is off, since `max_pixels` is asked of the header before any pixel is decoded.
- Pillow's warnings about sloppy files are silenced: a verdict must not depend on the caller's warning filters.

As in the reference transforms of open_clip and timm, EXIF orientation and colour profiles are ignored.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from operators.errors import WinnowError
from operators.rejects import Reason

IMAGE_HASH_BYTES = 16
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "JPEG2000": "jp2",
    "PPM": "ppm",
}
"""Pillow's name of each accepted format, and the extension that the ledger shows for it; the commonest first."""

_FORMATS = tuple(name for name in EXTENSIONS if name != "MPO")  # several JPEGs in one file: opened as JPEG
_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Image.MAX_IMAGE_PIXELS = None


class Header(NamedTuple):
    """What the header of an image says: size in pixels as stored, and the extension of its true format."""

    width: int
    height: int
    ext: str


class DecodedImage(NamedTuple):
    """An image in mode RGB, and its header. A draft may be smaller than the header says."""

    image: Image.Image
    header: Header


class UnusableImage(WinnowError):
    """One image that costs its sample.

    Attributes:
        reason: what the ledger will say.
        header: the header, where it could be read.
    """

    def __init__(self, message: str, reason: Reason, header: Header | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.header = header

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.reason, self.header)


def decode(data: bytes, *, max_pixels: int, draft: tuple[int, int] | None = None) -> DecodedImage:
    """Decodes the first frame of an image completely, so that a truncated file is noticed, and makes it RGB.

    Args:
        data: the encoded bytes.
        max_pixels: the largest width x height accepted, judged by the header.
        draft: (width, height) for a fast JPEG decode: the DCT is evaluated at 1/2, 1/4 or 1/8 scale, with both sides
            no smaller than this. Other formats ignore it. Pixels then differ slightly from a full decode.

    Raises:
        UnusableImage: with `undecodable_image` or `image_too_large`.
    """
    _silence_pillow()
    with _rejecting(None):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    header = Header(image.width, image.height, EXTENSIONS[image.format or ""])
    if header.width * header.height > max_pixels:
        message = f"image must have at most {max_pixels} pixels, got {header.width} x {header.height}"
        raise UnusableImage(message, Reason.IMAGE_TOO_LARGE, header)
    with _rejecting(header):
        if draft is not None:
            image.draft(None, draft)
        image.load()
        return DecodedImage(_to_rgb(image), header)


def image_hash(data: bytes) -> bytes:
    """BLAKE2b-128 of the encoded bytes: equal for byte-identical files, whatever they decode to."""
    return hashlib.blake2b(data, digest_size=IMAGE_HASH_BYTES).digest()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion, which drops alpha and expands palettes, except for 16-bit grey, which it would clip.

    Grey of 16 bits keeps its high byte, as Pillow does with 16-bit colour. Mode `I` (32 bits in memory) comes from
    files with 16 significant bits and is read as such; what lies outside is clipped.
    """
    if image.mode.startswith("I"):
        grey_HW = np.clip(np.asarray(image), 0, 0xFFFF) >> 8
        image = Image.fromarray(grey_HW.astype(np.uint8))
    return image.convert("RGB")


@contextmanager
def _rejecting(header: Header | None) -> Iterator[None]:
    """Whatever a decoder raises on bad bytes costs the sample; running out of memory says nothing about the bytes."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        message = f"image must decode, got {type(error).__name__}: {error}"
        raise UnusableImage(message, Reason.UNDECODABLE_IMAGE, header) from error


def _silence_pillow() -> None:
    # Not `catch_warnings`: it swaps process-wide state for a while, which is unsafe where threads decode side by side.
    if _PILLOW_FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
