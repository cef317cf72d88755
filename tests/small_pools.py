"""Small pools of real bytes, for the tests of several packages."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def jpeg(number: int, side: int = 32) -> bytes:
    """A small image, another one for each number below 256."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (number, number * 31 % 256, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def sound(count: int, *fields: Mapping[str, object]) -> list[dict[str, bytes]]:
    """Sound samples, all different; the first ones carry metadata."""
    samples = [{"jpg": jpeg(number), "txt": b"a text of %d" % number} for number in range(count)]
    for sample, metadata in zip(samples, fields, strict=False):
        sample["json"] = json.dumps(metadata).encode()
    return samples


def tar_bytes(samples: Sequence[Mapping[str, bytes]]) -> bytes:
    """A tar of members `<number>.<extension>`, those of a sample together."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, parts in enumerate(samples):
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, samples: Sequence[Mapping[str, bytes]]) -> None:
    """Writes `tar_bytes`."""
    path.write_bytes(tar_bytes(samples))
