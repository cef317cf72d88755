"""Compares selections of a pool: trains the same model on each, with several seeds, and tests them all.

    winnow compare CONFIG [--set a.b=c]... [--address ADDRESS]

--set overrides a key of the config (`--set training.samples_seen=1000000`), --address joins a running Ray cluster (so
does RAY_ADDRESS). The same command goes on where it was stopped. What was found is in <workspace>/comparison.json, and
drawn in comparison.html.
"""

import argparse

from pipeline.arguments import add_config
from pipeline.comparison.compare import run_comparison
from pipeline.comparison.page import PAGE
from pipeline.comparison.results import RESULTS, print_comparison
from pipeline.comparison.settings import Comparison
from pipeline.config.loader import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the config; returns the exit code."""
    result = run_comparison(load_config(args.config, Comparison, args.overrides), args.address)
    print_comparison(result)
    print(f"workspace: {result.workspace} ({RESULTS}, {PAGE}, training/, evaluation/)")
    return 0
