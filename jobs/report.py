"""Writes the HTML report of a workspace's latest run, unless the one that is there is up to date.

    winnow report WORKSPACE [--workers N] [--address ADDRESS]

`winnow curate` writes it by itself; this is for a run that did not, or for a page that an older version wrote. Prints
the path of report.html. --address joins a running Ray cluster (so does RAY_ADDRESS).
"""

import argparse

from pipeline.engine import Resources, engine
from pipeline.progress import open_progress
from pipeline.record import open_run
from pipeline.report.build import REPORT, location, write_report
from pipeline.storage import Store
from pipeline.summary import summarise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("workspace", metavar="WORKSPACE", help="of a run that has finished")
    parser.add_argument("--workers", type=int, help="CPU workers (default: all)")
    parser.add_argument("--address", help="of a running Ray cluster")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints where it is; returns the exit code."""
    store = Store(args.workspace)
    with engine(Resources(workers=args.workers), args.address) as workers, open_progress() as progress:
        latest, config = open_run(store, workers=workers, progress=progress)
        write_report(latest, config.steps, summarise(latest, []))
    print(f"{location(store)}/{REPORT}")
    return 0
