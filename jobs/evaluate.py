"""Evaluates models: zero-shot classification, image-text retrieval, linear probes, with confidence intervals.

    winnow evaluate CONFIG [--set a.b=c]... [--address ADDRESS]

--set overrides a key of the config (`--set bootstrap=200`), --address joins a running Ray cluster (so does
RAY_ADDRESS).
"""

import argparse

from pipeline.arguments import add_config
from pipeline.config.loader import load_config
from pipeline.evaluation.evaluate import run_evaluation
from pipeline.evaluation.results import print_results
from pipeline.evaluation.settings import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the config; returns the exit code."""
    config = load_config(args.config, Evaluation, args.overrides)
    print_results(run_evaluation(config, args.address), config.store.url)
    return 0
