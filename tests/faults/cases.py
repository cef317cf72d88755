"""Small curations for the schedules of faults."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from tests.small_trainings import TINY

SHARDS, ROWS = 6, 25
TRAINED = {"samples_seen": 160, "batch_size": 16}
NETWORK = {"image_size": 16, **TRAINED}


def write_inputs(folder: Path) -> None:
    """The pool, a trusted set, an evaluation set, a list of uids to deny, a model, and a step of the user's own."""
    generate_pool(folder / "pool", PoolSettings(samples=SHARDS * ROWS, samples_per_shard=ROWS))
    generate_pool(folder / "trusted", PoolSettings(samples=60, seed=1, broken=False, misaligned_fraction=0.0))
    generate_pool(folder / "test", PoolSettings(samples=30, seed=2, broken=False))
    (folder / "deny.txt").write_text("0" * 32 + "\n")
    (folder / "model.json").write_text(json.dumps(TINY))
    (folder / "own_step.py").write_text(
        "def keep(table):\n    return [uid[-1] % 5 > 0 for uid in table['uid'].to_pylist()]\n"
    )


def steps(folder: Path) -> Mapping[str, list[dict[str, Any]]]:
    """The steps of each case, by its name: a short one, and two that between them have every kind.

    Args:
        folder: holds what `write_inputs` wrote.
    """

    def source(name: str) -> dict[str, str]:
        return {"format": "webdataset", "path": f"{folder}/{name}/pool/*.tar"}

    own = {"step": "python", "function": "own_step:keep", "columns": ["uid"]}
    top = {"step": "filter", "score": "alignment", "keep_fraction": 0.9}
    density = {"step": "prune", "method": "dbp", "model": "raw", "clusters": 6, "keep_fraction": 0.6, "neighbours": 3}
    trusted = source("trusted")
    return {
        "short": [{"step": "exact_dedup"}, own, density],
        "nightly": [
            {**own, "name": "own"},
            {"step": "exact_dedup"},
            {"step": "semantic_dedup", "model": "raw", "clusters": 3, "epsilon": 0.01},
            density,
        ],
        "curation": [
            {"step": "rules", "min_side": 20, "min_words": 2},
            {"step": "deny", "uids": f"{folder}/deny.txt"},
            {"step": "exact_dedup"},
            {**top, "score": None, "column": "bytes", "diversity": {"model": "raw", "clusters": 4}},
            {"step": "semantic_dedup", "model": "raw", "clusters": 4, "epsilon": 0.01},
            {"step": "decontaminate", "model": "raw", "against": [source("test")], "epsilon": 0.001},
            own,
            density,
        ],
        "learned": [
            {"step": "score", "name": "alignment", "model": "tiny"},
            {"step": "binary_embeddings", "name": "trusted", "model": "raw", "trusted": [trusted]},
            {"step": "filter", "name": "binary", "score": "trusted", "keep_fraction": 0.9},
            {"step": "binary_images", "name": "resnet", "model": "test_resnet", "trusted": [trusted], **NETWORK},
            {"step": "masked_autoencoder", "name": "m3ae", "trusted": [trusted], "width": 64, "depth": 1, **NETWORK},
            {"step": "image_based", "model": "raw", "clusters": 5, "reference": [source("test")]},
            {"step": "sweep", "model": "raw", "clusters": [3, 4], "neighbours": 3, "keep_fraction": 0.5},
            {"step": "intersection", "of": [top, own]},
            {"step": "prune", "method": "prototypes", "model": "raw", "clusters": 4, "keep_fraction": 0.8},
        ],
    }


NIGHTLY = "nightly"
"""The case that is one of `winnow nightly`."""


def nights(pool: str) -> list[dict[str, str]]:
    """What each night of that case finds: four shards of the pool at `<folder>/*.tar`, then all six."""
    return [{"pool.path": pool.replace("*", "0000[0-3]")}, {}]


def models(folder: Path, case: str) -> Mapping[str, Any]:
    """The models of a case: it takes seconds to import what a run would not use."""
    raw = {"library": "pixels", "size": 8}
    tiny = {"library": "open_clip", "name": f"{folder}/model.json", "weights": "random"}
    return {"raw": raw, "tiny": tiny} if case == "learned" else {"raw": raw}
