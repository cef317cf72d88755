"""Shows which samples were rejected and why, and writes their bytes into a folder for a look.

    winnow rejects WORKSPACE [--reason R] [--export DIR [--limit N] [--to-storage K=V]...] [--snapshot N]
                   [--storage K=V]... [--workers N] [--address ADDRESS]

Prints how many samples of the latest run were rejected, by reason, with the shards that have the most of them. --export
writes what could be read of each: the bytes of its image, text and JSON as they are in the shard, in a folder for each
reason, under names of our own. DIR/index.csv has the true key of each file, its shard, row, offset, and uid; names that
a spreadsheet could take for a formula, and unprintable ones, stand there as JSON. --limit (default 1000, 0 for all) is
how many samples of each reason. The pool must be as the run read it.
--snapshot looks at a snapshot of `winnow nightly` in place of the latest run.
--storage gives fsspec an option to open WORKSPACE (`endpoint_url=http://...`), --to-storage one to open DIR.
--export runs on N CPU workers of this machine, or of the Ray cluster at ADDRESS.
"""

import argparse

from operators.errors import ConfigError
from pipeline.arguments import add_snapshot, add_workspace, open_workspace, read_options
from pipeline.console import print_table
from pipeline.engine import Resources, engine
from pipeline.progress import open_progress
from pipeline.record import open_run
from pipeline.rejects import check_reason, count_rejects, export_rejects, largest_shards
from pipeline.storage import Store, absolute

_SHARDS_SHOWN = 10
_LIMIT = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_workspace(parser)
    add_snapshot(parser)
    parser.add_argument("--reason", metavar="R", help="only samples rejected for it")
    parser.add_argument("--export", metavar="DIR", help="an empty folder, or one to be made")
    parser.add_argument("--limit", metavar="N", type=int, default=_LIMIT, help="samples of each reason (0: all)")
    parser.add_argument(
        "--to-storage", metavar="KEY=VALUE", action="append", default=[], help="an option for fsspec to open DIR"
    )
    parser.add_argument("--workers", type=int, help="CPU workers (default: all)")
    parser.add_argument("--address", help="of a running Ray cluster")


def run(args: argparse.Namespace) -> int:
    """Prints the table and exports what was asked for; returns the exit code."""
    store, reason = open_workspace(args), check_reason(args.reason)
    if args.limit < 0:
        raise ConfigError(f"--limit must be at least 0, got {args.limit}")
    counts = count_rejects(store, args.snapshot)
    reasons = sorted({why for why, _ in counts if reason in (None, why)})
    rows = []
    for why in reasons:
        shards = largest_shards(counts, why)
        rows += [(why, shard, count) for shard, count in shards[:_SHARDS_SHOWN]]
        if more := shards[_SHARDS_SHOWN:]:
            rows.append((why, f"({len(more):,} more shards)", sum(count for _, count in more)))
    print_table(("reason", "shard", "samples"), rows)
    total = sum(count for (why, _), count in counts.items() if reason in (None, why))
    print(f"\n{total:,} samples rejected" + (f" as {reason}" if reason else ""))
    if args.export:
        target = Store(absolute(args.export), read_options("--to-storage", args.to_storage))
        with engine(Resources(workers=args.workers), args.address) as workers, open_progress() as progress:
            chosen, _ = open_run(store, workers=workers, progress=progress, snapshot=args.snapshot)
            written = export_rejects(chosen, target, reason=reason, limit=args.limit or None)
        print(f"{written.total():,} of them in {target.url} (index.csv)")
    return 0
