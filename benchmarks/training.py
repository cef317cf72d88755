"""Training samples per second through Ray Train, over a plain loop of open_clip's own model and loss.

    python -m benchmarks.training [--samples 1000] [--steps 16] [--batch 256] [--threads 4] [--repeats 7]

The baseline holds every picture as normalised floats and every caption as tokens in memory, and does nothing but pick,
forward, backward and step (AdamW, fused as ours is), on all threads of one process. Ours reads the same pairs from the
tars of a generated pool: decoded by tasks, dealt through the object store, logged; once with one worker of all threads,
once with two of half of them each. Plain loops run before and after each of these, each ratio is to the mean of the
two, and medians are printed. All count the second half of the steps only, without starts and first decodings; `waiting`
is the share of that time that a worker waited for data.
"""

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from operators import torchvision_ops  # noqa: F401

# isort: split
import open_clip

from pipeline.engine import Resources, engine
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from pipeline.training.settings import Training
from pipeline.training.trainer import run_training

MODEL = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 6, "layers": 4},
}
RATE, BETAS, EPS = 5e-4, (0.9, 0.98), 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if half(options.steps) * options.batch < options.samples:
        parser.error("the first half of the steps must see all samples, so that the second decodes none")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name, engine(Resources(workers=options.threads)):
        folder = Path(name)
        generate_pool(folder, PoolSettings(samples=options.samples, broken=False))
        (folder / "model.json").write_text(json.dumps(MODEL))
        pairs = load_pairs(sorted((folder / "pool").glob("*.tar")))
        plain = [plain_loop(*pairs, steps=options.steps, batch=options.batch)]
        rates: dict[int, list[float]] = {1: [], 2: []}
        ratios: dict[int, list[float]] = {1: [], 2: []}
        waits: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(options.repeats):
            for workers in rates:
                config = training(folder, f"{workers}-{repeat}", workers, options)
                rate, wait = second_half(run_training(config).metrics_path)
                plain.append(plain_loop(*pairs, steps=options.steps, batch=options.batch))
                rates[workers].append(rate)
                ratios[workers].append(rate / statistics.mean(plain[-2:]))
                waits[workers].append(wait)
    print(f"{'':<12} {'samples/s':>10} {'ratio':>6} {'range':>15} {'waiting':>8}")
    print(f"{'plain loop':<12} {statistics.median(plain):10.1f}")
    for workers, title in ((1, "one worker"), (2, "two workers")):
        middle, ratio, wait = (statistics.median(found[workers]) for found in (rates, ratios, waits))
        spread = f"{min(ratios[workers]):.2f} to {max(ratios[workers]):.2f}"
        print(f"{title:<12} {middle:10.1f} {ratio:6.2f} {spread:>15} {wait:8.1%}")


def load_pairs(tars: list[Path]) -> tuple[Tensor, Tensor]:
    """Normalised pixels (N, C, H, W) and tokens (N, L) of all samples, by open_clip's own transform and tokenizer."""
    size, length = MODEL["vision_cfg"]["image_size"], MODEL["text_cfg"]["context_length"]
    transform = open_clip.image_transform(size, is_train=False)
    tokenize = open_clip.SimpleTokenizer(context_length=length)
    images: dict[str, Tensor] = {}
    captions: dict[str, str] = {}
    for tar in tars:
        with tarfile.open(tar) as archive:
            for member in archive:
                key, _, ext = member.name.partition(".")
                data = archive.extractfile(member).read()
                if ext == "txt":
                    captions[key] = data.decode()
                elif ext != "json":
                    images[key] = transform(Image.open(io.BytesIO(data)))
    return torch.stack([images[key] for key in captions]), tokenize(list(captions.values()))


def plain_loop(pixels_NCHW: Tensor, tokens_NL: Tensor, *, steps: int, batch: int) -> float:
    """Samples per second of the second half of the steps."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPS, fused=True)
    order_N = torch.cat([torch.randperm(len(pixels_NCHW)) for _ in range(steps * batch // len(pixels_NCHW) + 1)])
    for step in range(steps):
        if step == half(steps):
            started = time.perf_counter()
        rows_B = order_N[step * batch : (step + 1) * batch]
        features = model(pixels_NCHW[rows_B], tokens_NL[rows_B])
        optimizer.zero_grad(set_to_none=True)
        loss(*features[:3]).backward()
        optimizer.step()
    return (steps - half(steps)) * batch / (time.perf_counter() - started)


def half(steps: int) -> int:
    """The steps that are not counted; of an odd number the larger part, so that those after it are one metrics line."""
    return -(-steps // 2)


def training(folder: Path, workspace: str, workers: int, options: argparse.Namespace) -> Training:
    """The same with Winnow. A metrics line at half time and one at the end."""
    return Training.model_validate(
        {
            "workspace": str(folder / workspace),
            "data": [{"pool": {"format": "webdataset", "path": f"{folder}/pool/*.tar"}}],
            "model": {"name": str(folder / "model.json"), "precision": "float32"},
            "samples_seen": options.steps * options.batch,
            "batch_size": options.batch,
            "optimizer": {"learning_rate": RATE},
            "schedule": {"shape": "constant"},
            "log_every": half(options.steps),
            "resources": {"workers": workers, "threads": options.threads // workers, "gpus": False},
        }
    )


def second_half(metrics_path: str) -> tuple[float, float]:
    """Samples per second and the share of time that a worker waited, of the last line of the metrics."""
    record = json.loads(Path(metrics_path).read_text().splitlines()[-1])
    return record["samples_per_second"], record["data_wait_share"]


if __name__ == "__main__":
    main()
