"""Shows the whole thing: generates a small pool with known faults, curates it, and leaves everything in runs/demo.

    winnow demo [--samples 2000] [--set a.b=c]...

The pool is made once; running again reuses every step. The config is that of examples/demo.yaml.
"""

import argparse
from pathlib import Path

from pipeline.config.loader import load_config
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from pipeline.summary import print_summary

_CONFIG = Path(__file__).with_name("demo.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--samples", type=int, default=PoolSettings().samples, help="size of the generated pool")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])


def run(args: argparse.Namespace) -> int:
    """Generates the pool unless it is there, curates it, and returns the exit code."""
    config = load_config(str(_CONFIG), Curation, args.overrides)
    folder = Path(config.workspace)
    if not (folder / "truth.parquet").exists():
        print(f"generating a pool of {args.samples:,} samples in {folder}/pool")
        generate_pool(folder, PoolSettings(samples=args.samples))
    print_summary(run_curation(config))
    print(f"curated shards: {folder}/curated; why a sample is where it is: winnow why {folder} UID")
    return 0
