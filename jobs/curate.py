"""Curates a pool: from raw shards to a smaller, better training set, a ledger and a report.

    winnow curate CONFIG [--set a.b=c]... [--address ADDRESS] [--dry-run [PLAN OPTIONS]]

--set overrides a key of the config (`--set steps.prune.keep_fraction=0.3`), --address joins a running Ray cluster
(so does RAY_ADDRESS). --dry-run does nothing but print the plan: for each step what an earlier run left to reuse, its
rows, the bytes that it reads and writes, its CPU and GPU hours and what they cost, and the memory of a worker. Of the
pool a few shards are sampled; what models and operators cost is measured on one core of this machine, or for
`--gpu h100 --gpus 64` derived from counted operations.
"""

import argparse
import json
import sys

from operators.errors import ConfigError
from pipeline.arguments import add_config
from pipeline.config.loader import load_config
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.plan.machines import PEAK_FLOPS, Machines
from pipeline.plan.plan import default_cpus, make_plan
from pipeline.plan.rates import read_overrides
from pipeline.plan.table import as_json, print_plan
from pipeline.summary import print_summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    plan = parser.add_argument_group("with --dry-run")
    plan.add_argument("--json", action="store_true", default=None, help="print the plan as JSON")
    plan.add_argument("--sample", type=int, metavar="N", help="shards to sample (default: 3)")
    plan.add_argument("--rates", metavar="FILE", help="rates in place of measured ones, as `rates` of a plan in JSON")
    plan.add_argument(
        "--cpus", type=int, metavar="N", help="CPUs of the cluster (default: resources.workers, or this machine's)"
    )
    plan.add_argument("--gpus", type=int, metavar="N", help="GPUs of the cluster (default: resources.gpus, or 0)")
    plan.add_argument("--gpu", choices=sorted(PEAK_FLOPS), help="their kind (default: h100)")
    plan.add_argument("--cpu-price", type=float, metavar="DOLLARS", help="of a CPU for an hour (default: 0.04)")
    plan.add_argument("--gpu-price", type=float, metavar="DOLLARS", help="of a GPU for an hour (default: 2.5)")


def run(args: argparse.Namespace) -> int:
    """Runs the config; returns the exit code."""
    config = load_config(args.config, Curation, args.overrides)
    if args.dry_run:
        plan(config, args)
        return 0
    for name in ("json", "sample", "rates", "cpus", "gpus", "gpu", "cpu_price", "gpu_price"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} must be used with --dry-run, got it without")
    print_summary(run_curation(config, args.address))
    return 0


def plan(config: Curation, args: argparse.Namespace) -> None:
    """Prints what a run would do."""
    names = ("gpus", "gpu", "cpu_price", "gpu_price")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    given.setdefault("gpus", config.resources.gpus or 0)
    machines = Machines(cpus=default_cpus(config.resources) if args.cpus is None else args.cpus, **given)
    if sys.stderr.isatty():
        print("reading a sample of the pool, and measuring this machine and the models", file=sys.stderr)
    made = make_plan(config, machines, read_overrides(args.rates), shards=3 if args.sample is None else args.sample)
    if args.json:
        print(json.dumps(as_json(made), indent=4))
    else:
        print_plan(made)
