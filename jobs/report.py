"""Writes the HTML report of a workspace's latest run, unless the one that is there is up to date.

    winnow report WORKSPACE [--snapshot N] [--storage KEY=VALUE]... [--workers N] [--address ADDRESS]

`winnow curate` writes it by itself; this is for a run that did not, or for a page that an older version wrote. Prints
the path of report.html. --snapshot writes that of a snapshot of `winnow nightly`, beside it. --storage gives fsspec an
option to open WORKSPACE (`endpoint_url=http://...`), --address joins a running Ray cluster (so does RAY_ADDRESS).
"""

import argparse

from pipeline.arguments import add_snapshot, add_workspace, open_workspace
from pipeline.engine import Resources, engine
from pipeline.progress import open_progress
from pipeline.record import open_run, read_record
from pipeline.report.build import REPORT, location, write_report
from pipeline.snapshots import read_snapshot, report_path
from pipeline.summary import summarise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_workspace(parser)
    add_snapshot(parser)
    parser.add_argument("--workers", type=int, help="CPU workers (default: all)")
    parser.add_argument("--address", help="of a running Ray cluster")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints where it is; returns the exit code."""
    store = open_workspace(args)
    with engine(Resources(workers=args.workers), args.address) as workers, open_progress() as progress:
        read_record(store, args.snapshot)  # else the lease would make a folder where there is none
        snapshot = None if args.snapshot is None else read_snapshot(store, args.snapshot)
        name = report_path(args.snapshot) if snapshot else REPORT
        with store.locked(progress.note):
            chosen, config = open_run(store, workers=workers, progress=progress, snapshot=args.snapshot)
            write_report(chosen, config.steps, summarise(chosen, []), snapshot=snapshot, name=name)
    print(f"{location(store)}/{name}")
    return 0
