"""Turns raw image-text pools into smaller, better training sets, on Ray.

Exit codes: 0 done, 2 the config or the input is wrong (the message says what to change), 3 stopped by a limit,
130 interrupted, 143 terminated (the same command resumes), 141 nobody reads the output any more, 1 anything else. Those
of `status` are its own.
"""

import argparse
import ast
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from operators.errors import UserError, WinnowError
from pipeline import logs
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
    "status": "jobs.status",
    "submit": "jobs.submit",
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
    with ExitStack() as stack:  # so that what is said of its end has the form that the command asks for
        return _run(arguments, stack)


def _run(arguments: Sequence[str], stack: ExitStack) -> int:
    stopped_by: list[int] = []
    try:
        with _terminable(stopped_by):
            args = _build_parser(arguments).parse_args(arguments)
            stack.enter_context(logs.configured(args.log))
            logs.log(logging.INFO, f"{arguments[0]}: started", event="job started", version=_version())
            status: int = args.run(args)
            if sys.stdout:  # none where it was closed before
                sys.stdout.flush()
    except SystemExit as stop:  # argparse: 0 after --help and --version, 2 for arguments that are wrong
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt as interrupt:
        status = 128 + next(iter(stopped_by), signal.SIGINT)
        _say(str(interrupt) or "stopped; run the same command again to resume", status)
    except Exception as error:
        if not _is_unread(error):
            return _explain(error)
        status = 128 + signal.SIGPIPE
        logs.log(logging.INFO, f"{arguments[0]}: ended", event="job ended", exit_code=status)
    else:
        logs.log(logging.INFO, f"{arguments[0]}: ended", event="job ended", exit_code=status)
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
            command.add_argument(
                "--log", choices=logs.FORMS, help=f"form of the log (default: {logs.VARIABLE}, or text)"
            )
            command.set_defaults(run=module.run)
    return parser


def _docstring(module_name: str) -> str:
    """A module's docstring, read from its source without importing it."""
    spec = importlib.util.find_spec(module_name)
    assert spec is not None, f"{module_name} must exist, as jobs.main lists it"
    assert spec.origin is not None, f"{module_name} must be a file"
    return ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""


def _is_unread(error: Exception) -> bool:
    """Whether an error says that nobody reads the standard output any more, as behind `| head`: no more is written."""
    output = sys.__stdout__
    if not isinstance(error, BrokenPipeError) or output is None or output is not sys.stdout:
        return False
    poll = select.poll()
    poll.register(output.fileno(), 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False  # it was another pipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # for what Python writes when it ends
    return True


def _explain(error: Exception) -> int:
    """Says what went wrong on standard error; returns the exit code."""
    if (ours := winnow_error(error)) is not None:
        _say(str(ours), ours.exit_code)
        return ours.exit_code
    if (message := disk_error(error)) is not None:
        _say(f"a file cannot be written or read: {message}", UserError.exit_code)
        return UserError.exit_code
    text = f"unexpected error; please report it with the traceback below{_where_logs_are()}"
    _say(text, WinnowError.exit_code, "".join(traceback.format_exception(error)))
    return WinnowError.exit_code


def _say(message: str, exit_code: int, trace: str = "") -> None:
    if logs.wants_json():
        logs.log(logging.ERROR, message, event="job ended", exit_code=exit_code, traceback=trace or None)
        return
    for line in message.splitlines():
        print(f"winnow: {line}", file=sys.stderr)
    sys.stderr.write(trace)


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
