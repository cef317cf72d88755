"""Shows the whole thing: generates a small pool with known faults, curates it, and leaves everything in runs/demo.

    winnow demo [--folder runs/demo] [--samples 2000] [--set a.b=c]...

The pool is made once; running again reuses every step. The config is that of examples/demo.yaml, with its paths in the
folder unless `--set` says otherwise.
"""

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq

from operators.errors import InputError
from pipeline.config.loader import load_config
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from pipeline.summary import print_summary

_CONFIG = Path(__file__).with_name("demo.yaml")
_PATHS = {
    "pool.path": "pool",
    "workspace": "",
    "export.0.path": "curated",
    "export.1.path": "curated/subset.npy",
}
"""Keys of the config, and where they point to in the folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    samples = f"size of the pool to generate (default: {PoolSettings().samples})"
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="for the pool and all that comes of it")
    parser.add_argument("--samples", type=int, help=samples)
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])


def run(args: argparse.Namespace) -> int:
    """Generates the pool unless it is there, curates it, and returns the exit code."""
    config = configure(args)
    prepare_pool(args.folder, args.samples)
    print_summary(run_curation(config))
    for export in config.export:
        print(f"{export.format}: {export.path}")
    print(f"why a sample is where it is: winnow why {config.workspace} UID")
    return 0


def configure(args: argparse.Namespace) -> Curation:
    """The demo's config with its paths in the folder, then with what the user sets."""
    paths = [f"{key}={json.dumps(str(args.folder / place))}" for key, place in _PATHS.items()]
    return load_config(str(_CONFIG), Curation, paths + args.overrides)


def prepare_pool(folder: Path, samples: int | None) -> None:
    """Generates a pool of so many samples, by default `PoolSettings.samples`, unless it is there.

    Raises:
        InputError: one of another size is there.
    """
    truth = folder / "truth.parquet"
    if not truth.exists():
        settings = PoolSettings() if samples is None else PoolSettings(samples=samples)
        print(f"generating a pool of {settings.samples:,} samples in {folder}/pool")
        generate_pool(folder, settings)
        return
    there = pq.read_metadata(truth).num_rows
    if samples not in (None, there):
        raise InputError(
            f"samples must be {there}, as many as the pool in {folder} has, got {samples}: remove that folder, or give "
            "another --folder"
        )
