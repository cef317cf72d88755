"""Shows what a workspace holds that nobody will read again, and deletes it with --yes.

    winnow clean WORKSPACE [--yes] [--unused] [--list] [--older-than HOURS] [--storage KEY=VALUE]...

That is what attempts which were killed have left behind, the pieces of passes that are over, checkpoints of finished
trainings, earlier ledgers, and what was moved away as damaged. --unused adds the artifacts that the latest run of the
curation does not refer to: those of other configs and of shards that are gone, which another run would have to make
again. Trained models and filters, reports, exports, data sets and files that are not Winnow's stay, always.
Workspaces inside it, of a comparison or a network, are cleaned too. --list names every file.

It takes the lease that every job holds on its workspace, so it stops where one is running. In an object store only
files older than a day go (--older-than), as workers of a job that has lost its lease may go on writing for a while.
--storage gives fsspec an option to open WORKSPACE (`endpoint_url=http://...`).
"""

import argparse

from operators.errors import WorkspaceError
from pipeline.arguments import add_workspace, open_workspace
from pipeline.clean.leftovers import Leftover
from pipeline.clean.sweep import REMOTE_HOURS, delete, find
from pipeline.console import print_table
from pipeline.contents import workspaces
from pipeline.progress import open_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_workspace(parser)
    parser.add_argument("--yes", action="store_true", help="delete what is shown")
    parser.add_argument("--unused", action="store_true", help="also what the latest run does not refer to")
    parser.add_argument("--list", action="store_true", help="name every file")
    hours = f"leave alone what was changed since (default: 0 on a disk, {REMOTE_HOURS:.0f} in an object store)"
    parser.add_argument("--older-than", metavar="HOURS", type=float, help=hours)


def run(args: argparse.Namespace) -> int:
    """Shows what can go, and deletes it where that was asked for; returns the exit code."""
    root = open_workspace(args)
    if not root.names(""):
        raise WorkspaceError(f"{root.url} must be a workspace, got an empty folder or none")
    rows: list[tuple[str, str, int, int]] = []
    note = open_progress().note
    for store in list(workspaces(root)):
        with store.locked(note):
            found = find(store, unused=args.unused, hours=args.older_than)
            inner = store.url[len(root.url.rstrip("/")) + 1 :]
            rows += [_row(inner, leftover) for leftover in found]
            if args.list:
                for leftover in found:
                    print("\n".join(f"{inner}/{path}".lstrip("/") for path in leftover.files))
            if args.yes:
                delete(store, found)
    if not rows:
        print("nothing to clean")
        return 0
    print_table(("what", "where", "files", "bytes"), rows)
    files, size = sum(row[2] for row in rows), sum(row[3] for row in rows)
    print(f"\n{files:,} files of {size:,} bytes {'deleted' if args.yes else 'can go: --yes deletes them'}")
    return 0


def _row(inner: str, leftover: Leftover) -> tuple[str, str, int, int]:
    where = f"{inner}/{leftover.where}".strip("/") if inner else leftover.where
    return leftover.what, where, len(leftover.files), leftover.bytes
