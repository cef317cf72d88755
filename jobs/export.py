"""Writes what the latest run of a workspace kept, or a snapshot, in one more format; nothing is computed anew.

    winnow export WORKSPACE --format webdataset|parquet|clip_retrieval|semdedup|uids|keys --to PATH
                  [--max-samples-per-shard 10000] [--max-shard-bytes 3000000000]
                  [--model NAME] [--rows-per-file 1000000] [--step NAME] [--snapshot N]
                  [--storage KEY=VALUE]... [--to-storage KEY=VALUE]... [--workers N] [--address ADDRESS]

webdataset is a folder of tars with the original bytes, parquet a folder of tables, clip_retrieval a folder of
embeddings (of --model) and metadata, semdedup one of embeddings and the sorted clusters of --step, uids DataComp's
subset file (.npy), keys a Parquet file for `winnow.load_kept`. --snapshot exports what a snapshot of `winnow nightly`
kept. --storage gives fsspec an option to open WORKSPACE
(`endpoint_url=http://...`), --to-storage one for PATH, --address joins a running Ray cluster (so does RAY_ADDRESS).
"""

import argparse
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from operators.errors import ConfigError
from pipeline.arguments import add_snapshot, add_workspace, open_workspace, read_options
from pipeline.console import print_table
from pipeline.engine import Resources, engine
from pipeline.export.run import export
from pipeline.export.settings import Export
from pipeline.progress import open_progress
from pipeline.record import open_run, read_record

_OPTIONS = {
    "path": "--to",
    "storage": "--to-storage",
    "max_samples_per_shard": "--max-samples-per-shard",
    "max_shard_bytes": "--max-shard-bytes",
    "model": "--model",
    "rows_per_file": "--rows-per-file",
    "step": "--step",
}
"""Setting -> the option that sets it."""
_FORMATS = {get_args(kind.model_fields["format"].annotation)[0]: kind for kind in get_args(get_args(Export)[0])}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_workspace(parser)
    add_snapshot(parser)
    parser.add_argument("--format", required=True, choices=tuple(_FORMATS))
    parser.add_argument(
        "--to", dest="path", metavar="PATH", required=True, help="a folder, or a file for uids and keys"
    )
    parser.add_argument("--max-samples-per-shard", type=int, help="of a tar (default 10000)")
    parser.add_argument("--max-shard-bytes", type=int, help="of a tar (default 3000000000)")
    parser.add_argument("--model", help="whose embeddings")
    parser.add_argument("--rows-per-file", type=int, help="of a clip-retrieval file (default 1000000)")
    parser.add_argument("--step", help="whose clusters")
    parser.add_argument(
        "--to-storage", metavar="KEY=VALUE", action="append", default=[], help="an option for fsspec to open PATH"
    )
    parser.add_argument("--workers", type=int, help="CPU workers (default: all)")
    parser.add_argument("--address", help="of a running Ray cluster")


def run(args: argparse.Namespace) -> int:
    """Exports and prints what was written; returns the exit code."""
    settings, store = read_settings(args), open_workspace(args)
    resources = Resources(workers=args.workers)
    with engine(resources, args.address) as workers, open_progress() as progress:
        read_record(store, args.snapshot)  # else the lease would make a folder where there is none
        with store.locked(progress.note):
            chosen, _ = open_run(store, workers=workers, progress=progress, snapshot=args.snapshot)
            done = export(chosen, settings)
    time = "reused" if done.reused else f"{done.seconds:.1f} s"
    print_table(
        ("format", "path", "samples", "files", "bytes", "time"),
        [(done.format, done.path, done.samples, done.files, done.bytes, time)],
    )
    return 0


def read_settings(args: argparse.Namespace) -> Export:
    """The settings that the arguments stand for. Raises ConfigError, naming the option that is wrong."""
    given: dict[str, Any] = {"storage": read_options(_OPTIONS["storage"], args.to_storage)}
    given |= {name: getattr(args, name) for name in _OPTIONS if name != "storage"}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return TypeAdapter[Export](Export).validate_python({"format": args.format, **chosen})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(args.format, problem) for problem in error.errors())) from error


def _explain(chosen: str, problem: Any) -> str:
    option = _OPTIONS[str(problem["loc"][1])]
    if problem["type"] == "extra_forbidden":
        owners = [name for name, kind in _FORMATS.items() if problem["loc"][1] in kind.model_fields]
        return f"{option} must be used with --format {' or '.join(owners)}, got --format {chosen}"
    if problem["type"] == "missing":
        return f"{option} must be given with --format {chosen}"
    rule = problem["msg"].removeprefix("Input should ").removeprefix("String should ")
    return f"{option} must {rule}, got {problem['input']!r}"
