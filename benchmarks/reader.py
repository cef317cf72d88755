"""How fast shards are read, against Ray Data's own webdataset reader and a plain `tarfile` loop.

    python -m benchmarks.reader [--shards 4] [--samples 2500] [--repeats 5] [--cpus 2]

Writes tars of incompressible images of about 20 KB with a caption and a JSON member, reads them warm from the page
cache without decoding, and prints the median samples per second of interleaved repeats, and the ratios.
"""

import argparse
import io
import json
import logging
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from pipeline.listing import list_shards
from pipeline.pool import Pool, Shard
from pipeline.readers import ShardEnd, read_shard


def write_tars(folder: Path, num_shards: int, num_samples: int) -> None:
    rng = random.Random(0)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for index in range(num_samples):
                key = f"{shard:05d}{index:06d}"
                caption = f"a photo of thing number {index} in some place"
                metadata = {"uid": f"{rng.getrandbits(128):032x}", "url": f"https://example.com/{key}", "text": caption}
                image = b"\xff\xd8\xff\xe0" + rng.randbytes(rng.randint(10_000, 30_000))
                for extension, data in (
                    ("jpg", image),
                    ("txt", caption.encode()),
                    ("json", json.dumps(metadata).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def read_plainly(folder: Path) -> int:
    """The loop one would write by hand: group by key, parse the JSON, check nothing."""
    num_samples = 0
    for path in sorted(folder.glob("*.tar")):
        sample: dict[str, Any] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                if sample.get("key") != key:
                    sample = {"key": key}
                    num_samples += 1
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                sample[extension] = json.loads(data) if extension == "json" else data
    return num_samples


def read_ours(pool: Pool) -> int:
    return sum(_count(pool, shard) for shard in list_shards(pool))


def _count(pool: Pool, shard: Shard) -> int:
    return sum(not isinstance(sample, ShardEnd) for sample in read_shard(pool, shard))


def stream_ours(pool: Pool) -> int:
    """Whole chunks as rows, as the pipeline moves them."""

    def read(row: dict[str, Any]) -> Any:
        chunk: list[tuple[bytes, str | None, str]] = []
        for sample in read_shard(pool, shards[row["item"]]):
            if not isinstance(sample, ShardEnd):
                chunk.append((sample.image, sample.caption, json.dumps(sample.metadata)))
            if chunk and (len(chunk) == pool.chunk_samples or isinstance(sample, ShardEnd)):
                images, captions, metadata = zip(*chunk, strict=True)
                yield {"images": list(images), "captions": list(captions), "metadata": list(metadata)}
                chunk = []

    shards = list_shards(pool)
    rows = ray.data.from_items(list(range(len(shards))), override_num_blocks=len(shards)).flat_map(read)
    return sum(len(images) for batch in rows.iter_batches(batch_format="pyarrow") for images in batch["images"])


def stream_rays(folder: Path) -> int:
    rows = ray.data.read_webdataset(sorted(str(path) for path in folder.glob("*.tar")), decoder=None)
    return sum(batch.num_rows for batch in rows.iter_batches(batch_format="pyarrow"))


def measure(candidates: dict[str, Callable[[], int]], num_samples: int, repeats: int) -> dict[str, float]:
    """Median samples per second of each candidate, after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            found = candidate()
            assert found == num_samples, f"{name} must read {num_samples} samples, got {found}"
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: num_samples / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("shards", 4), ("samples", 2500), ("repeats", 5), ("cpus", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    ray.init(num_cpus=options.cpus, object_store_memory=600_000_000, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder, options.shards, options.samples)
        pool = Pool.model_validate({"format": "webdataset", "path": f"{folder}/*.tar"})
        speeds = measure(
            {
                "winnow, in process": lambda: read_ours(pool),
                "tarfile, in process": lambda: read_plainly(folder),
                "winnow, Ray Data": lambda: stream_ours(pool),
                "read_webdataset, Ray Data": lambda: stream_rays(folder),
            },
            options.shards * options.samples,
            options.repeats,
        )
    ray.shutdown()
    for label, speed in speeds.items():
        print(f"{label:28}{speed:12,.0f} samples/s")
    for ours, theirs in (("in process", "tarfile, in process"), ("Ray Data", "read_webdataset, Ray Data")):
        print(f"winnow / {theirs:28}{speeds[f'winnow, {ours}'] / speeds[theirs]:6.2f} x")


if __name__ == "__main__":
    main()
