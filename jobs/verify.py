"""Reads all that a workspace holds again, and names what is damaged.

    winnow verify WORKSPACE [--repair] [--storage KEY=VALUE]... [--workers N] [--address ADDRESS]

Every file is read whole and compared with its checksum; rows are counted; every part must have the rows of its samples,
and rows in = kept + dropped + rejected; the ledger must say what the verdicts say, and summary.json the same in sums.
Workspaces inside it, of a comparison or a network, are looked at too. Prints a table (`unfinished`: a run goes on from
these parts; `files only`: fits that nights were given, or of a step before its first part), then each damaged file with
what was expected and what was found, and what was made from it. No job should write there meanwhile, which it says
where one has the workspace. --repair, which takes it, moves what is damaged into `damaged/`; the next run of the job
makes that again, and what depends on it. --storage gives fsspec an option to open WORKSPACE
(`endpoint_url=http://...`), --address joins a running Ray cluster (so does RAY_ADDRESS).

Exit codes: 0 all is sound, 2 something is damaged.
"""

import argparse
import contextlib

from operators.errors import UserError
from pipeline.arguments import add_workspace, open_workspace
from pipeline.claim import holder_of
from pipeline.console import print_table
from pipeline.contents import DAMAGED, workspaces
from pipeline.engine import Resources, engine
from pipeline.progress import open_progress
from pipeline.quarantine import quarantine
from pipeline.verify.workspace import Verified, check_is_workspace, verify

_MOST_SHOWN = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_workspace(parser)
    parser.add_argument("--repair", action="store_true", help=f"move what is damaged into {DAMAGED}/")
    parser.add_argument("--workers", type=int, help="CPU workers (default: all)")
    parser.add_argument("--address", help="of a running Ray cluster")


def run(args: argparse.Namespace) -> int:
    """Looks at the workspace and prints what was found; returns the exit code."""
    root = open_workspace(args)
    check_is_workspace(root)
    damaged = 0
    with engine(Resources(workers=args.workers), args.address) as workers, open_progress() as progress:
        for store in workspaces(root):
            if not args.repair and (holder := holder_of(store)):
                note = f"{holder.name} has had it since {holder.since}, and what it writes may seem damaged"
                progress.note(f"{store.url}: {note}")
            with store.locked(progress.note) if args.repair else contextlib.nullcontext():
                found = verify(store, workers=workers, progress=progress)
                show(found, heading=store != root)
                damaged += len(found.damage)
                for damage in found.damage if args.repair else ():
                    for path in quarantine(store, damage.path):
                        print(f"moved: {path} -> {DAMAGED}/")
    if not damaged:
        print("sound: every file is what was written, and every sum adds up")
        return 0
    if args.repair:
        print("run the job again: it makes what was moved away, and what depends on it")
    else:
        print(f"--repair moves what is damaged into {DAMAGED}/, and the next run of the job makes it again")
    return UserError.exit_code


def show(found: Verified, *, heading: bool) -> None:
    """Prints the table of one workspace, what is damaged, and what was made from it."""
    if heading:
        print(f"\n{found.store.url}")
    rows = [(row.name, row.tally.parts, row.tally.rows, row.tally.bytes, row.state) for row in found.rows]
    print_table(("artifact", "parts", "rows", "bytes", "state"), rows)
    print()
    for damage in found.damage[:_MOST_SHOWN]:
        print(f"damaged: {damage}")
    if len(found.damage) > _MOST_SHOWN:
        print(f"damaged: {len(found.damage) - _MOST_SHOWN:,} more files")
    for folder, others in found.depends.items():
        print(f"made from {folder}: {', '.join(others) or 'nothing'}")
