"""Says what became of one sample, and by which numbers.

    winnow why WORKSPACE UID [--snapshot N] [--storage KEY=VALUE]...

UID is the 32 hexadecimal digits that the ledger, the report and the exports show. Reads one file of the ledger.
--snapshot says what became of it in a snapshot of `winnow nightly`.
--storage gives fsspec an option to open WORKSPACE (`endpoint_url=http://...`).
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any

from operators.errors import InputError
from pipeline.arguments import add_snapshot, add_workspace, open_workspace
from pipeline.console import show
from pipeline.ledger import find_rows
from pipeline.nightly.rows import find_rows_of

_UID = re.compile(r"[0-9a-f]{32}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_workspace(parser)
    add_snapshot(parser)
    parser.add_argument("uid", metavar="UID", help="32 hexadecimal digits")


def run(args: argparse.Namespace) -> int:
    """Prints the sample's verdict; returns the exit code."""
    uid = args.uid.strip().lower()
    if not _UID.fullmatch(uid):
        raise InputError(f"UID must be 32 hexadecimal digits, got {args.uid!r}")
    store = open_workspace(args)
    rows = find_rows(store, uid) if args.snapshot is None else find_rows_of(store, args.snapshot, uid)
    if not rows:
        raise InputError(f"UID must be one that {args.workspace} knows: no sample has uid {uid}")
    print("\n\n".join(describe(row) for row in rows))
    return 0


def describe(row: Mapping[str, Any]) -> str:
    """A row of the ledger for people: the verdict, then where the sample lies and every number behind the verdict."""
    verdict = row["verdict"]
    if row["step"]:
        verdict += f" by {row['step']}: {row['reason']}" if verdict == "dropped" else f": {row['reason']}"
    facts = [("shard", row["shard"]), ("key", row["key"]), *_flat(row["detail"])]
    width = max(len(name) for name, _ in facts)
    return "\n".join([f"{row['uid']} {verdict}", *(f"  {name:<{width}}  {value}" for name, value in facts)])


def _flat(detail: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts in the order of their names; those of a step, or of any nested value, as `step.fact`."""
    for name, value in detail.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, show(value)
