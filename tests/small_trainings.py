"""A tiny model and a small pool to train it on, for the tests of several packages."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.training.settings import Training
from pipeline.training.trainer import TrainingResult
from tests.small_pools import write_tar

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (40, 50, 220), "white": (240, 240, 240)}
STEPS, BATCH = 24, 16
SOUND = 69
"""Sound samples of the pool that `write_pool` writes; one more is broken."""


def pairs(count: int, caption: str = "a {} square number {}") -> list[dict[str, bytes]]:
    """Noisy squares of four colours, with a caption of the colour and the number, and the colour's class."""
    draws = np.random.default_rng(count)
    found = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % 4]
        noisy = np.clip(np.asarray(colour) + draws.integers(-30, 30, (20, 20, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "PNG")
        metadata = json.dumps({"label": number % 4}).encode()
        found.append({"png": buffer.getvalue(), "txt": caption.format(name, number).encode(), "json": metadata})
    return found


def write_pool(folder: Path) -> None:
    """Two tars of pairs, and the config of a tiny model."""
    (folder / "tiny.json").write_text(json.dumps(TINY))
    everything = pairs(SOUND + 1)
    everything[5]["png"] = b"broken"
    for i in range(2):
        write_tar(folder / f"{i}.tar", everything[i * 40 : (i + 1) * 40])


def training(folder: Path, workspace: str, **changes: Any) -> Training:
    """A training on that pool."""
    pool = {"format": "webdataset", "path": f"{folder}/*.tar", "max_reject_fraction": 0.1}
    settings = {
        "workspace": str(folder / workspace),
        "data": [{"pool": pool}],
        "model": {"name": str(folder / "tiny.json")},
        "samples_seen": STEPS * BATCH,
        "batch_size": BATCH,
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup_steps": 4},
        "augment": {"padding": 2},
        "checkpoint_every": 5,
        "log_every": 1,
        "resources": {"threads": 1},
    }
    return Training.model_validate(settings | changes)


def losses(result: TrainingResult, steps: int = STEPS) -> list[float]:
    """The loss of every step, each of which must be there once."""
    records = [json.loads(line) for line in Path(result.metrics_path).read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    return [record["loss"] for record in records]
