"""Arguments that several commands share."""

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from operators.errors import ConfigError
from pipeline.storage import Store, absolute


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declares CONFIG, --set and --address."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    add_overrides(parser)
    parser.add_argument("--address", help="of a running Ray cluster")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Declares --set."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another value, in YAML, for a key of the config, such as steps.prune.keep_fraction=0.3; may be repeated",
    )


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Declares WORKSPACE and the options to open it."""
    parser.add_argument("workspace", metavar="WORKSPACE", help="of a run that has finished")
    parser.add_argument(
        "--storage", metavar="KEY=VALUE", action="append", default=[], help="an option for fsspec to open WORKSPACE"
    )


def add_snapshot(parser: argparse.ArgumentParser) -> None:
    """Declares --snapshot, of a workspace that `winnow nightly` writes."""
    parser.add_argument("--snapshot", metavar="N", type=int, help="of a nightly workspace, instead of its latest run")


def open_workspace(args: argparse.Namespace) -> Store:
    """The workspace that the arguments name. Raises ConfigError."""
    return Store(absolute(args.workspace), read_options("--storage", args.storage))


def read_options(flag: str, assignments: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` each, the values in YAML. Raises ConfigError, naming the flag."""
    options = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            got = repr(assignment) if assignment.isidentifier() else "something else"  # it may be a credential
            raise ConfigError(f"{flag} must be KEY=VALUE, got {got}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{flag} must be KEY=VALUE with a value in YAML, got another for {key!r}") from error
    return options
