"""Shows what the job in a workspace is doing, or what became of the last one.

    winnow status WORKSPACE [--watch [SECONDS]] [--json] [--storage KEY=VALUE]...

Tells who has the workspace, at which step it is, how far and how fast, and the last error; of a curation or a night
that is done the table of its summary; of a job that was killed where it stopped, and how to go on. It works from any
machine that sees the workspace, and for what curates, trains, evaluates and compares; of a comparison the trainings and
the evaluation have workspaces, and so a status, of their own (`training/NAME/SEED`, `evaluation`). --watch shows it
again every few seconds (5) until the job ends, --json as one line of JSON. --storage gives fsspec an option to open
WORKSPACE (`endpoint_url=http://...`).

Exit codes: 0 it is running or done, 4 it failed or was stopped by a limit, 5 it was interrupted (killed, terminated, or
lost with its machine); 2 no job has begun there.
"""

import argparse
import json
import time
from dataclasses import asdict

from rich.console import Console

from operators.errors import ConfigError
from pipeline.arguments import add_workspace, open_workspace
from pipeline.console import print_table
from pipeline.progress import DONE, describe_seconds
from pipeline.status.read import Status, read_status
from pipeline.status.write import RUNNING, StepStatus
from pipeline.storage import Store

_WATCH_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_workspace(parser)
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=float,
        nargs="?",
        const=_WATCH_SECONDS,
        help=f"show it again every so often (default {_WATCH_SECONDS:g}) until the job ends",
    )
    parser.add_argument("--json", action="store_true", help="as one line of JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the status, once or until the job ends; returns the exit code."""
    store = open_workspace(args)
    if args.watch is not None and args.watch <= 0:
        raise ConfigError(f"--watch must be greater than 0, got {args.watch:g}")
    console = Console()
    while True:
        status = read_status(store)
        if args.watch and console.is_terminal and not args.json:
            console.clear()
        if args.json:
            print(json.dumps(asdict(status), ensure_ascii=False), flush=True)
        else:
            print_status(status, store)
        if not args.watch or status.state != RUNNING:
            return status.exit_code
        time.sleep(args.watch)


def print_status(status: Status, store: Store) -> None:
    """Prints a status for people."""
    print(status.workspace)
    for sentence in status.sentences:
        print(sentence)
    print(flush=True)
    if status.job in ("curate", "nightly") and status.state == DONE:
        from pipeline.summary import print_summary, read_summary  # imports Ray, which is slow and seldom wanted here

        if summary := read_summary(store):
            print_summary(summary)
            return
    if status.steps:
        print_table(
            ("step", "state", "done", "of", "rate", "time", "left", "more"), [_row(step) for step in status.steps]
        )


def _row(step: StepStatus) -> tuple[object, ...]:
    left = describe_seconds(step.seconds_left) if step.state == RUNNING and step.seconds_left is not None else None
    more = [*(f"{count:,} {name}" for name, count in step.counts.items() if count), *step.remarks]
    rate = f"{step.rate:,.0f}/s" if step.rate >= 10 else f"{step.rate:.2g}/s"
    time_taken = describe_seconds(step.seconds)
    return step.name, step.state, step.rows, step.total, rate, time_taken, left, ", ".join(more)
