"""Images per second through the pipeline, over a bare preload-decode-forward loop on the same cores.

    python -m benchmarks.pipeline [--images 2048] [--cores 4] [--repeats 3]

Both use open_clip's ViT-B/32 with random weights at 224 px, in float32. The loop holds every file in memory, decodes a
batch of 32 with the reference transform on as many threads as there are cores, and runs the model on as many. The
pipeline reads tars, decodes, encodes, writes pieces and publishes parts; its rate is that of the images by which a long
pass exceeds a short one, so that neither the loading of weights counts nor what was decoded meanwhile. Medians of
interleaved runs.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray
from PIL import Image

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip
import torch

from operators.encoders.settings import OpenClipSettings
from operators.hashing import generator
from pipeline.curate import start_run
from pipeline.curation import Curation
from pipeline.embed import make
from pipeline.engine import Resources, engine
from pipeline.listing import list_shards
from pipeline.progress import Progress

BATCH = 32


SHORT = 256
"""Images of the short pass."""


def write_tars(folder: Path, files: list[bytes], num_shards: int) -> None:
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard, len(files), num_shards):
                for ext, data in (("jpg", files[i]), ("txt", b"a photo")):
                    info = tarfile.TarInfo(f"{i:09d}.{ext}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def photo_like(seed: int) -> bytes:
    """A JPEG of 480 x 360 with structure at every scale, about as hard to decode as a photograph."""
    rng = generator(seed, "photo")
    image = Image.new("RGB", (480, 360))
    for size in (4, 16, 64, 240):
        noise = rng.integers(0, 256, (size * 3 // 4, size, 3), dtype=np.uint8)
        image = Image.blend(image, Image.fromarray(noise).resize(image.size, Image.Resampling.BICUBIC), 0.4)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=90)
    return sink.getvalue()


def bare_loop(files: list[bytes], cores: int) -> float:
    """Images per second of the loop."""
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    model.eval()

    def load(data: bytes) -> torch.Tensor:
        return preprocess(Image.open(io.BytesIO(data)).convert("RGB"))

    with torch.inference_mode(), ThreadPoolExecutor(cores) as threads:
        model.encode_image(torch.zeros(BATCH, 3, 224, 224))
        started = time.perf_counter()
        for start in range(0, len(files), BATCH):
            pixels = torch.stack(list(threads.map(load, files[start : start + BATCH])))
            features = model.encode_image(pixels)
            torch.nn.functional.normalize(features, dim=-1).half().numpy()
        return len(files) / (time.perf_counter() - started)


def pass_seconds(pool: Path, cores: int, progress: Progress | None = None) -> float:
    """Wall time of one pass that makes `samples` and the embeddings of a pool."""
    with tempfile.TemporaryDirectory() as workspace:
        config = Curation.model_validate(
            {
                "pool": {"format": "webdataset", "path": f"{pool}/*.tar"},
                "workspace": workspace,
                "models": {"clip": {"library": "open_clip", "name": "ViT-B-32", "weights": "random"}},
            }
        )
        run = start_run(config, list_shards(config.pool), workers=cores, progress=progress or Progress())
        started = time.perf_counter()
        make(run, [("clip", "image")])
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048, help="by which the long pass exceeds the short one")
    parser.add_argument("--cores", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    assert OpenClipSettings.model_fields["batch_size"].default == BATCH
    with ThreadPoolExecutor(args.cores) as threads:
        files = list(threads.map(photo_like, range(SHORT + args.images)))
    bare, piped = [], []
    with tempfile.TemporaryDirectory() as folder, engine(Resources(workers=args.cores)):
        short, long = Path(folder, "short"), Path(folder, "long")
        for path, count in ((short, SHORT), (long, SHORT + args.images)):
            path.mkdir()
            write_tars(path, files[:count], num_shards=2 * args.cores)
        for _ in range(args.repeats):
            bare.append(bare_loop(files[: args.images // 2], args.cores))
            piped.append(args.images / (pass_seconds(long, args.cores) - pass_seconds(short, args.cores)))
            print(f"  bare loop {bare[-1]:.1f} images/s, pipeline {piped[-1]:.1f} images/s", flush=True)
        ray.shutdown()
    ratios = [ours / theirs for ours, theirs in zip(piped, bare, strict=True)]
    print(f"bare loop  {statistics.median(bare):8.1f} images/s")
    print(f"pipeline   {statistics.median(piped):8.1f} images/s")
    print(f"ratio      {statistics.median(ratios):8.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
