"""Runs a job on a cluster: sends the config and the code through Ray Jobs, follows the log, returns the exit code.

    winnow submit CONFIG --address http://HEAD:8265 [--command curate|nightly|train|...] [--set a.b=c]...

The config is checked here, before anything is sent, and travels with Winnow's own code: the nodes need its dependencies
only. What the job reads and writes must be in a store, or on a disk that all nodes share. --working-dir FOLDER sends a
folder along, for the modules of `python` steps, lists and other small files; relative paths then count from it. --pip
FILE names requirements that each node installs for the job.

Credentials stay here. --env AWS_PROFILE gives the job a variable of this environment, --env KEY=VALUE another one; who
can read the cluster's dashboard can read it there, so a role of the nodes is better.

The job's name is made of its config, code and options (of `nightly` also of the date, in UTC), or given by --id. The
same command again follows the job while it runs, shows the log of one that succeeded, and resumes one that failed or
was stopped, as NAME-2. A night that runs is followed also when the date has changed. --again repeats a job that
succeeded, which finds in the workspace what is done already: so a second night of one date needs it.

Ctrl-C ends the following and not the job; --no-wait does not begin it; --stop stops the job.
"""

import argparse
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from operators.errors import ConfigError
from pipeline import logs
from pipeline.arguments import add_overrides
from pipeline.comparison.settings import Comparison
from pipeline.config.loader import check_document, load_document
from pipeline.curation import Curation
from pipeline.evaluation.settings import Evaluation
from pipeline.nightly.settings import Nightly
from pipeline.storage import digest
from pipeline.submission.attempts import Job, start, stop
from pipeline.submission.follow import exit_code, follow
from pipeline.submission.package import Package, write_package
from pipeline.submission.portable import check_portable, without_credentials
from pipeline.submission.server import default_address, job_server
from pipeline.training.settings import Training

CONFIGS: Mapping[str, type[BaseModel]] = {
    "compare": Comparison,
    "curate": Curation,
    "evaluate": Evaluation,
    "nightly": Nightly,
    "train": Training,
}
"""The commands that take a config, and what it must hold."""
_ID = re.compile("[A-Za-z0-9._-]+")
_NIGHTLY = "nightly"
"""Its config is the same every night, and each night is a job of its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument(
        "--address",
        default=default_address(),
        help="of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, where it is that of one",
    )
    parser.add_argument("--command", choices=sorted(CONFIGS), default="curate", help="what to run (default: curate)")
    add_overrides(parser)
    parser.add_argument("--working-dir", metavar="FOLDER", type=Path, help="a folder to send along")
    parser.add_argument(
        "--env", metavar="KEY[=VALUE]", action="append", default=[], help="a variable for the job; may be repeated"
    )
    parser.add_argument("--pip", metavar="FILE", help="requirements that each node installs for the job")
    parser.add_argument("--id", help="the job's name on the cluster")
    parser.add_argument("--again", action="store_true", help="run it also where it has succeeded")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")
    parser.add_argument("--stop", action="store_true", help="stop the job, if it runs")


def run(args: argparse.Namespace) -> int:
    """Submits the job, or finds it; returns the exit code of the job."""
    if not args.address:
        raise ConfigError("--address must be given, such as http://HEAD:8265")
    if args.pip and not Path(args.pip).is_file():
        raise ConfigError(f"--pip must be a file of requirements, got {args.pip}")
    if args.working_dir and not args.working_dir.is_dir():
        raise ConfigError(f"--working-dir must be a folder, got {args.working_dir}")
    variables = read_variables(args.env)
    document = load_document(args.config, args.overrides)
    local = check_portable(check_document(document, CONFIGS[args.command]), document, args.working_dir)
    value, left_out = without_credentials(document)
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        package = write_package(Path(folder), Path(args.config).name, value, args.working_dir)
        job = describe_job(args, package, variables)
        with job_server(args.address) as client:
            if args.stop:
                stop(client, job, _note)
                return 0
            warn(local, left_out)
            submission_id = start(client, job, again=args.again, note=_note)
            if args.no_wait:
                _note("not followed; the same command without --no-wait follows it, with --stop it ends")
                return 0
            try:
                ended = follow(client, submission_id, sys.stdout, _note)
            except KeyboardInterrupt:
                goes_on = f"{submission_id} goes on; the same command follows it again, with --stop it ends"
                raise KeyboardInterrupt(goes_on) from None
    if code := exit_code(ended):
        reason = f": {ended.message}" if ended.driver_exit_code is None and ended.message else ""
        again = "once that is put right, the same command goes on" if code in (2, 3) else "the same command resumes it"
        _note(f"{submission_id} {str(ended.status).lower()}, exit code {code}; {again}{reason}")
    return code


def describe_job(args: argparse.Namespace, package: Package, variables: Mapping[str, str]) -> Job:
    """The job of the arguments and what is sent."""
    if args.id and not _ID.fullmatch(args.id):
        raise ConfigError(f"--id must be of letters, digits, dots, - and _, got {args.id!r}")
    config = Path(args.config)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", config.stem)
    packages = Path(args.pip).read_text() if args.pip else ""
    content = digest(package.digest, sorted(variables), packages)  # values may be secrets
    series = args.id or "-".join(["winnow", args.command, stem, content])
    is_dated = args.command == _NIGHTLY and not args.id
    name = f"{series}-{datetime.now(UTC):%Y-%m-%d}" if is_dated else series
    given = {**logs.environment(), **variables}
    runtime_env: dict[str, Any] = {"working_dir": str(package.folder), "env_vars": given}
    if args.pip:
        runtime_env["pip"] = args.pip
    # From the folder that travels, `-m` finds the code that lies there before any that the node has installed.
    entrypoint = shlex.join(["python", "-m", "jobs.main", args.command, config.name])
    return Job(name, series, content, entrypoint, runtime_env)


def read_variables(assignments: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE`, or `KEY` of this environment, each. Raises ConfigError, which shows no value."""
    variables = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key.isidentifier():
            raise ConfigError("--env must be KEY=VALUE, or KEY of a variable that is set here, got another key")
        if not equals and key not in os.environ:
            raise ConfigError(f"--env must be KEY=VALUE, or KEY of a variable that is set here, got {key}")
        variables[key] = value if equals else os.environ[key]
    return variables


def warn(local: Sequence[str], left_out: Sequence[str]) -> None:
    """Says what of a config the cluster must have, and what it is not given."""
    if local:
        _note(f"local paths, which all nodes must share or have in their image: {', '.join(local)}")
    if left_out:
        _note(
            f"not sent, as they may be credentials: {', '.join(left_out)}. Where the nodes have no role of their own, "
            "--env AWS_ACCESS_KEY_ID and the like, or --env FSSPEC_S3_<OPTION>, give them to the job"
        )


def _note(text: str) -> None:
    print(f"winnow: {text}", file=sys.stderr, flush=True)
