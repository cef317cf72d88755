"""Curates a pool that grows: each night only what is new is read, judged beside what stands, and becomes a snapshot.

    winnow nightly CONFIG [--set a.b=c]... [--policy append|rebalance] [--address ADDRESS]
                   [--dry-run | --rollback N]

CONFIG is that of `winnow curate` with a section `nightly`. The first night fits thresholds, centroids and trained
filters on the whole pool; later ones apply them. `append` leaves every earlier verdict as it is; `rebalance` draws the
quotas of prunes anew over everything. Lists of a `deny` step take effect the next night, and change no other verdict;
all else that selects must stay as it is. A night that finds nothing new writes nothing. Shards that have changed or
vanished, and drift beyond a threshold, stop the night with exit code 3 where the config says so. --dry-run says what
there is to do, and whether shards would stop it; --rollback makes an earlier snapshot current, with its exports, and
the next night goes on from it. --set overrides a key of the config, --address joins a running Ray cluster (so does
RAY_ADDRESS). The history is in report.html.
"""

import argparse
from typing import get_args

from pipeline.arguments import add_config
from pipeline.config.loader import load_config
from pipeline.console import print_table
from pipeline.given import Policy
from pipeline.nightly.night import Night, Tonight, plan_night, roll_back, run_night
from pipeline.nightly.settings import Nightly
from pipeline.nightly.snapshot import describe_drift, in_words
from pipeline.summary import print_summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_config(parser)
    parser.add_argument("--policy", choices=get_args(Policy), help="in place of the config's")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print what is new and stop")
    instead.add_argument("--rollback", metavar="N", type=int, help="make snapshot N current")


def run(args: argparse.Namespace) -> int:
    """Goes through the night and prints what it did; returns the exit code."""
    policy = [f"nightly.policy={args.policy}"] if args.policy else []
    config = load_config(args.config, Nightly, [*args.overrides, *policy])
    if args.dry_run:
        tonight = plan_night(config.resolved())
        print_plan(tonight)
        tonight.check(config.nightly)
    elif args.rollback is not None:
        print_night(roll_back(config, args.rollback, args.address))
    else:
        print_night(run_night(config, args.address))
    return 0


def print_plan(tonight: Tonight) -> None:
    """Prints what a night would find."""
    shards = tonight.shards
    new = set(shards.new)
    print_table(
        ("shards", "new", "bytes of new", "changed", "vanished"),
        [
            (
                len(shards.used),
                len(new),
                sum(shard.size for shard in shards.used if shard.name in new),
                len(shards.changed),
                len(shards.vanished),
            )
        ],
    )
    for kind, names in (("changed", shards.changed), ("vanished", shards.vanished)):
        for name in names:
            print(f"{kind}: {name}")
    for title in tonight.renewed:
        print(f"other lists: {title}")
    after = f"snapshot {tonight.parent['id']}" if tonight.parent else "nothing"
    print(f"\nthere is {f'snapshot {tonight.history.next} to make' if tonight.is_due else 'nothing new'} after {after}")


def print_night(night: Night) -> None:
    """Prints what a night, or going back, has done."""
    if night.summary:
        print_summary(night.summary)
    if night.is_new and night.snapshot["drift"]:
        print()
        print_table(("drift", "of", "value", "by chance up to", "state"), describe_drift(night.snapshot))
    if not night.is_new:
        done = "nothing new since" if night.summary is None else "the workspace and its exports show"
        print(f"{done} snapshot {night.snapshot['id']}")
    else:
        print(in_words(night.snapshot))
