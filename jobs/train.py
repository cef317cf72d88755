"""Trains two towers on pairs: a data filtering network, or a CLIP to prove a training set by.

    winnow train CONFIG [--set a.b=c]... [--address ADDRESS]

--set overrides a key of the config (`--set optimizer.learning_rate=1e-4`), --address joins a running Ray cluster (so
does RAY_ADDRESS). The same command goes on from the last checkpoint. The model is in <workspace>/model, as open_clip
loads it.
"""

import argparse

from pipeline.arguments import add_config
from pipeline.config.loader import load_config
from pipeline.console import print_table
from pipeline.training.settings import Training
from pipeline.training.trainer import TrainingResult, run_training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the config; returns the exit code."""
    config = load_config(args.config, Training, args.overrides)
    print_result(run_training(config, args.address))
    return 0


def print_result(result: TrainingResult) -> None:
    """Prints what a training did, and where to look next."""
    columns = ("samples", "samples seen", "steps", "epochs", "seconds", "waiting for data", "final loss")
    waited = f"{result.data_wait_share:.1%}"
    row = (result.samples, result.samples_seen, result.steps, result.epochs, result.seconds, waited, result.loss)
    print_table(columns, [row])
    for line in result.left_out:
        print(f"left out: {line}")
    if result.reused:
        print("nothing to do: the model is there already (reused)")
    print(f"model: {result.model_path}")
    print(f"metrics: {result.metrics_path}")
