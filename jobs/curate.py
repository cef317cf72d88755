"""Curates a pool: from raw shards to a smaller, better training set, a ledger and a report.

    winnow curate CONFIG [--set a.b=c]... [--address ADDRESS] [--dry-run]

--set overrides a key of the config (`--set steps.prune.keep_fraction=0.3`), --address joins a running Ray cluster
(so does RAY_ADDRESS), --dry-run prints the steps, and what an earlier run left to reuse, and does nothing.
"""

import argparse

from pipeline.arguments import add_config
from pipeline.config.loader import load_config
from pipeline.console import print_table
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.dry_run import dry_run
from pipeline.summary import print_summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def run(args: argparse.Namespace) -> int:
    """Runs the config; returns the exit code."""
    config = load_config(args.config, Curation, args.overrides)
    if args.dry_run:
        print_plan(config)
    else:
        print_summary(run_curation(config, args.address))
    return 0


def print_plan(config: Curation) -> None:
    """Prints what a run would do."""
    plan = dry_run(config)
    print_table(("shards", "bytes", "samples"), [(plan.shards, plan.bytes, plan.samples)])
    print()
    steps = [
        (step.name, step.kind, step.rows_in, step.rows_out, "reused" if step.reused else "to do") for step in plan.steps
    ]
    print_table(("step", "kind", "rows in", "rows out", "state"), steps)
