"""Writes a synthetic pool of rendered scenes with captions, and the truth about each sample beside it.

    winnow generate DIR [--samples 2000] [--samples-per-shard 250] [--seed 0] [--broken | --no-broken]
                        [--zipf-exponent 1.0] [--exact-fraction 0.06] [--near-fraction 0.08]
                        [--misaligned-fraction 0.25] [--labelled | --no-labelled] [--processes 1]

DIR/pool/*.tar is the pool (img2dataset's layout), DIR/truth.parquet the answers. The same arguments give the same
bytes. For a held-out test set ask for another seed, `--labelled`, and `--no-broken --zipf-exponent 0 --exact-fraction 0
--near-fraction 0 --misaligned-fraction 0`.
"""

import argparse
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pyarrow as pa

from pipeline.console import print_table
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from pipeline.sample_faults import GENERATED_MEMBER_LIMIT

_LABELLED_HELP = "with the concept of each image in its metadata, for an evaluation set"
_BROKEN_HELP = "with a few samples of every reject reason, and the last shard cut"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments; their defaults are those of `PoolSettings`."""
    default = PoolSettings()
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new or an empty folder")
    parser.add_argument("--samples", type=int, default=default.samples)
    parser.add_argument("--samples-per-shard", type=int, default=default.samples_per_shard)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--broken", action=argparse.BooleanOptionalAction, default=default.broken, help=_BROKEN_HELP)
    parser.add_argument("--zipf-exponent", type=float, default=default.zipf_exponent, help="skew of the concepts")
    parser.add_argument("--exact-fraction", type=float, default=default.exact_fraction, help="share of exact copies")
    parser.add_argument("--near-fraction", type=float, default=default.near_fraction, help="share of edited copies")
    parser.add_argument(
        "--misaligned-fraction", type=float, default=default.misaligned_fraction, help="share of false captions"
    )
    parser.add_argument(
        "--labelled", action=argparse.BooleanOptionalAction, default=default.labelled, help=_LABELLED_HELP
    )
    parser.add_argument("--processes", type=int, default=1, help="that write shards side by side")


def run(args: argparse.Namespace) -> int:
    """Generates the pool and prints what is in it; returns the exit code."""
    settings = PoolSettings(**{field.name: getattr(args, field.name) for field in fields(PoolSettings)})
    truth = generate_pool(args.folder, settings, processes=args.processes)
    print_table(["kind", "samples"], list(count_kinds(truth).items()))
    limit = f", max_member_bytes: {GENERATED_MEMBER_LIMIT}" if settings.broken else ""
    print(f"\npool: {{format: webdataset, path: {args.folder / 'pool' / '*.tar'}{limit}}}")
    return 0


def count_kinds(truth: pa.Table) -> dict[str, int]:
    """Samples by what a run should make of them, by kind of duplicate and by caption; each sample may count thrice."""
    captions = ["aligned caption" if aligned else "misaligned caption" for aligned in truth["aligned"].to_pylist()]
    edits = [f"{edit} duplicate" for edit in truth["edit"].to_pylist() if edit]
    counts = {"all": truth.num_rows}
    for kinds in (truth["expected"].to_pylist(), edits, captions):
        counts.update(Counter(kinds).most_common())
    return counts
