"""Shows the whole thing on a generated pool: curates it, trains on the result, and proves that it paid.

    winnow demo [--folder runs/demo] [--samples N] [--set a.b=c]...

Generates a pool with known faults, a small trusted set and a test set; trains a data filtering network on the trusted
set; scores, filters, deduplicates and prunes the pool; trains CLIP on the raw pool, on a random subset and on what was
kept, with several seeds; and holds everything against the truth. All of it is left in runs/demo, and running again
reuses every step. The config is that of examples/demo.yaml, with its paths in the folder unless `--set` says otherwise.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from operators.errors import InputError
from operators.scenes import CONCEPTS
from pipeline.comparison.compare import run_comparison
from pipeline.comparison.results import print_comparison
from pipeline.comparison.settings import Comparison, Like
from pipeline.config.loader import load_config
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.engine import engine
from pipeline.evaluation.task_settings import Task
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from pipeline.progress import open_progress
from pipeline.record import open_run
from pipeline.report.build import write_report
from pipeline.summary import print_summary
from pipeline.training.settings import Data, Recipe, Training
from pipeline.training.trainer import run_training
from pipeline.truth import check_truth, print_checked

_CONFIG = Path(__file__).with_name("demo.yaml")
_TOWERS, _CLASSES = "towers.json", "test/classes.txt"
_PATHS = {
    "pool.path": "pool",
    "workspace": "",
    "models.dfn.name": _TOWERS,
    "models.dfn.weights": "dfn/model",
    "dfn.model.name": _TOWERS,
    "training.model.name": _TOWERS,
    "evaluation.scenes.data.path": "test/pool",
    "evaluation.scenes.classes": _CLASSES,
    "export.0.path": "curated",
    "export.1.path": "curated/subset.npy",
}
"""Keys of the config, and where they point to in the folder."""

_SCORE = "alignment"
"""The step that is held against the truth."""
_SOUND: dict[str, Any] = {
    "broken": False,
    "zipf_exponent": 0.0,
    "exact_fraction": 0.0,
    "near_fraction": 0.0,
    "misaligned_fraction": 0.0,
}


class Demo(Curation):
    """The curation of the demo, and what is around it.

    Attributes:
        samples: of the pool that is generated.
        trusted: true pairs that the filter learns from, of every concept alike and without duplicates.
        test: scenes that the trained models are tested on.
        towers: of all models that are trained, as open_clip writes them down.
        dfn: how the filter is trained.
        training: how a model is trained on each selection.
        evaluation: how it is tested.
        seeds: of these trainings.
    """

    samples: int = Field(ge=1)
    trusted: int = Field(ge=2)
    test: int = Field(ge=1)
    towers: dict[str, Any]
    dfn: Recipe
    training: Recipe
    evaluation: tuple[Task, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)

    @property
    def curation(self) -> Curation:
        """The curation alone; its report comes last of all, when there is more to tell."""
        own = {name: getattr(self, name) for name in Curation.model_fields}
        return Curation(**own | {"report": False})

    @property
    def comparison(self) -> Comparison:
        """The pool as it is, against what is kept of it and as many samples drawn at random."""
        same = {name: getattr(self, name) for name in ("pool", "workspace", "seed", "models", "training", "evaluation")}
        selections: dict[str, Any] = {"raw": (), "random": Like(like="curated"), "curated": self.steps}
        return Comparison(**same, selections=selections, seeds=self.seeds, resources=self.resources)

    def filter_training(self, folder: Path) -> Training:
        """The training of the filter on the trusted set in a folder."""
        trusted = {"pool": {"format": "webdataset", "path": str(folder / "trusted/pool")}}
        data = (Data.model_validate(trusted),)
        return Training(workspace=str(folder / "dfn"), seed=self.seed, data=data, **dict(self.dfn))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="for the pool and all that comes of it")
    parser.add_argument("--samples", type=int, help="size of the pool to generate (default: as in the config)")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])


def run(args: argparse.Namespace) -> int:
    """Runs the demo from pool to proof, and returns the exit code."""
    config = configure(args)
    prepare(args.folder, config)
    with engine(config.resources):
        run_training(config.filter_training(args.folder))
        summary = run_curation(config.curation)
        comparison = run_comparison(config.comparison)
        checked = check_truth(config.store, pq.read_table(args.folder / "truth.parquet"), _SCORE)
        with open_progress() as progress:
            latest, _ = open_run(config.store, workers=1, progress=progress)
            write_report(latest, config.steps, summary)
    print_summary(summary)
    print()
    print_comparison(comparison)
    print()
    print_checked(checked)
    for export in config.export:
        print(f"{export.format}: {export.path}")
    print(f"why a sample is where it is: winnow why {config.workspace} UID")
    return 0


def configure(args: argparse.Namespace) -> Demo:
    """The demo's config with its paths in the folder, then with what the user sets."""
    paths = [f"{key}={json.dumps(str(args.folder / place))}" for key, place in _PATHS.items()]
    samples = args.samples or count_samples(args.folder)
    sizes = [f"samples={samples}"] if samples else []
    return load_config(str(_CONFIG), Demo, paths + sizes + args.overrides)


def count_samples(folder: Path) -> int:
    """The size of the pool that is in a folder; 0 without one."""
    truth = folder / "truth.parquet"
    return int(pq.read_metadata(truth).num_rows) if truth.exists() else 0


def prepare(folder: Path, config: Demo) -> None:
    """Generates what is not there yet: the pool, the trusted set, the test set with its classes, the towers' config."""
    seed = config.seed
    prepare_pool(folder, PoolSettings(samples=config.samples, seed=seed))
    # Other seeds, so that no scene of the pool is among them.
    prepare_pool(folder / "trusted", PoolSettings(samples=config.trusted, seed=seed + 1, **_SOUND))
    prepare_pool(folder / "test", PoolSettings(samples=config.test, seed=seed + 2, labelled=True, **_SOUND))
    (folder / _CLASSES).write_text("".join(f"{concept}\n" for concept in CONCEPTS))
    (folder / _TOWERS).write_text(json.dumps(config.towers, indent=4) + "\n")


def prepare_pool(folder: Path, settings: PoolSettings) -> None:
    """Generates a pool unless it is there.

    Raises:
        InputError: one of another size is there.
    """
    there = count_samples(folder)
    if not there:
        print(f"generating {settings.samples:,} samples in {folder}/pool")
        generate_pool(folder, settings, processes=os.cpu_count() or 1)
    elif settings.samples != there:
        raise InputError(
            f"samples must be {there}, as many as the pool in {folder} has, got {settings.samples}: remove that "
            "folder, or give another --folder"
        )
