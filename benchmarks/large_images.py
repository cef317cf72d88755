"""A curation of 20-megapixel images with an object store of 80 MB: what is spilled, and each process' peak memory.

    python -m benchmarks.large_images [--images 48] [--workers 2]

A decoded image is 60 MB, so one does not leave room for a second in the store, and each process is watched while the
pool is read, hashed, embedded and pruned. The figures to hold are in `docs/reliability.md`.
"""

import argparse
import contextlib
import io
import os
import re
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from ray._private.internal_api import memory_summary

from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.engine import engine

WIDTH, HEIGHT = 5_000, 4_000
STORE_BYTES = 80_000_000
_PER_SHARD = 8
_POLL_SECONDS = 0.1


def write_pool(folder: Path, images: int) -> None:
    """Photograph-like noise, different in each image; JPEG of a few megabytes."""
    folder.mkdir(parents=True)
    for first in range(0, images, _PER_SHARD):
        with tarfile.open(folder / f"{first:05d}.tar", "w") as archive:
            for number in range(first, min(first + _PER_SHARD, images)):
                small_HWC = np.random.default_rng(number).integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), np.uint8)
                data = io.BytesIO()
                Image.fromarray(small_HWC).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(data, "JPEG")
                for extension, content in (("jpg", data.getvalue()), ("txt", f"large image {number}".encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pool(folder / "pool", options.images)
        bytes_ = sum(path.stat().st_size for path in (folder / "pool").iterdir())
        config = curation(folder, options.workers)
        with engine(config.resources), Watch() as watch:
            summary = run_curation(config)
            spilled = spilled_mebibytes()
    print(f"{options.images} images of {WIDTH} x {HEIGHT}, {bytes_ / 1e6:.0f} MB in tars, {summary.kept} kept")
    print(f"spilled: {spilled} MiB, past an object store of {STORE_BYTES / 1e6:.0f} MB")
    for kind, peak in sorted(watch.peaks.items(), key=lambda item: -item[1]):
        print(f"{kind:<40} peak {peak / 1e6:7.0f} MB")


def curation(folder: Path, workers: int) -> Curation:
    """Everything that touches pixels: sizes and hashes, two models, clusters."""
    return Curation.model_validate(
        {
            "pool": {"format": "webdataset", "path": f"{folder}/pool/*.tar"},
            "workspace": f"{folder}/work",
            "models": {"raw": {"library": "pixels", "size": 32}},
            "steps": [
                {"step": "rules", "min_side": 200},
                {"step": "exact_dedup"},
                {"step": "prune", "method": "dbp", "model": "raw", "clusters": 4, "keep_fraction": 0.5},
            ],
            "export": [{"format": "webdataset", "path": f"{folder}/curated"}],
            "resources": {"workers": workers, "object_store_bytes": STORE_BYTES},
        }
    )


def processes(pid: int) -> Iterator[Path]:
    """The folder in /proc of a process, and of all that it has started, directly or not."""
    yield Path(f"/proc/{pid}")
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread has ended
            for child in path.read_text().split():
                yield from processes(int(child))


def spilled_mebibytes() -> int:
    """What Ray has written to disk for want of room, since it started."""
    found = re.search(r"Spilled (\d+) MiB", memory_summary(stats_only=True))
    return int(found[1]) if found else 0


class Watch:
    """Looks at every process of this run until it is left.

    Attributes:
        peaks: kind of process -> most resident bytes of any one, shared memory not counted.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            for path in processes(os.getpid()):
                try:
                    title = (path / "cmdline").read_bytes().split(b"\0")[0].decode()
                    fields = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
                    own = sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
                except (OSError, ValueError, KeyError):  # it has ended
                    continue
                kind = "driver" if path.name == str(os.getpid()) else Path(title).name.partition(".")[0]
                self.peaks[kind] = max(self.peaks.get(kind, 0), own)


if __name__ == "__main__":
    main()
