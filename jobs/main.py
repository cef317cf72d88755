"""Turns raw image-text pools into smaller, better training sets, on Ray.

Exit codes: 0 done, 2 the config or the input is wrong (the message says what to change), 3 stopped by a limit,
130 interrupted, 143 terminated (the same command resumes), 1 anything else.
"""

import argparse
import ast
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from operators.errors import UserError, WinnowError
from pipeline.failures import disk_error, winnow_error

COMMANDS = {
    "clean": "jobs.clean",
    "compare": "jobs.compare",
    "curate": "jobs.curate",
    "demo": "jobs.demo",
    "evaluate": "jobs.evaluate",
    "export": "jobs.export",
    "generate": "jobs.generate",
    "nightly": "jobs.nightly",
    "rejects": "jobs.rejects",
    "report": "jobs.report",
    "train": "jobs.train",
    "verify": "jobs.verify",
    "why": "jobs.why",
}
"""Each module has `add_arguments(parser)`, `run(args) -> int`, and a docstring that is its help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the arguments after the program's name; default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    stopped_by: list[int] = []
    try:
        with _terminable(stopped_by):
            args = _build_parser(arguments).parse_args(arguments)
            status: int = args.run(args)
    except SystemExit as stop:  # argparse: 0 after --help and --version, 2 for arguments that are wrong
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        _say("stopped; run the same command again to resume")
        return 128 + next(iter(stopped_by), signal.SIGINT)
    except Exception as error:
        return _explain(error)
    return status


@contextmanager
def _terminable(stopped_by: list[int]) -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, and takes note of it."""

    def interrupt(number: int, frame: object) -> None:
        stopped_by.append(number)
        raise KeyboardInterrupt  # and no kind of it: Ray raises one of its own in its place

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # in a thread, where nobody may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands; only the module of the one that is asked for is imported, so that help is fast."""
    parser = argparse.ArgumentParser(
        "winnow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"winnow {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module_name in COMMANDS.items():
        text = _docstring(module_name)
        command = commands.add_parser(
            name,
            help=text.partition("\n")[0].replace("%", "%%"),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in arguments[:1]:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _docstring(module_name: str) -> str:
    """A module's docstring, read from its source without importing it."""
    spec = importlib.util.find_spec(module_name)
    assert spec is not None, f"{module_name} must exist, as jobs.main lists it"
    assert spec.origin is not None, f"{module_name} must be a file"
    return ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""


def _explain(error: Exception) -> int:
    """Says what went wrong on standard error; returns the exit code."""
    if (ours := winnow_error(error)) is not None:
        _say(str(ours))
        return ours.exit_code
    if (message := disk_error(error)) is not None:
        _say(f"a file cannot be written or read: {message}")
        return UserError.exit_code
    _say(f"unexpected error; please report it with the traceback below{_where_logs_are()}")
    traceback.print_exception(error)
    return WinnowError.exit_code


def _say(message: str) -> None:
    for line in message.splitlines():
        print(f"winnow: {line}", file=sys.stderr)


def _where_logs_are() -> str:
    logs = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/session_latest/logs")
    return f" (logs of Ray: {logs})" if "ray" in sys.modules and logs.is_dir() else ""


def _version() -> str:
    try:
        return importlib.metadata.version("winnow")
    except importlib.metadata.PackageNotFoundError:
        return "(run from a source tree)"


if __name__ == "__main__":
    sys.exit(main())
