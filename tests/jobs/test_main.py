import errno
import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import winnow as winnow_library
from jobs import main as cli
from operators.errors import ConfigError, InputError, LimitExceeded, WinnowError

FAKE = '''\
"""Counts to a number, 100 % exactly.

    winnow count N
"""


def add_arguments(parser):
    parser.add_argument("number", type=int)


def run(args):
    print(args.number)
    return 0
'''


@pytest.fixture
def winnow(tmp_path, monkeypatch, capfd):
    """Runs `winnow count 3` with a body in place of its own; returns exit code, standard output, standard error."""
    (tmp_path / "count_job.py").write_text(FAKE)
    (tmp_path / "broken_job.py").write_text('"""Never to be imported."""\nraise AssertionError("imported")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "COMMANDS", {"broken": "broken_job", "count": "count_job"})

    def run(*argv, body=None):
        if body:
            monkeypatch.setattr(importlib.import_module("count_job"), "run", lambda _: body())
        code = cli.main(argv)
        return code, *capfd.readouterr()

    yield run
    sys.modules.pop("count_job", None)


def raising(error):
    def body():
        raise error

    return body


def test_a_command_gets_its_arguments(winnow):
    assert winnow("count", "3") == (0, "3\n", "")


def test_the_exit_code_is_that_of_the_command(winnow):
    assert winnow("count", "3", body=lambda: 7) == (7, "", "")


def test_help_shows_the_first_line_of_each_docstring_and_imports_none(winnow):
    code, out, _ = winnow("--help")
    assert code == 0
    assert "broken    Never to be imported.\n" in out
    assert "count     Counts to a number, 100 % exactly.\n" in out


def test_help_of_a_command_is_its_docstring(winnow):
    code, out, _ = winnow("count", "--help")
    assert code == 0
    assert "Counts to a number, 100 % exactly.\n\nwinnow count N\n" in out


@pytest.mark.parametrize("argv", [(), ("cuont",), ("count",), ("count", "x"), ("--nothing",)])
def test_wrong_arguments_are_the_users_error(winnow, argv):
    code, out, err = winnow(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: winnow")


def test_version(winnow):
    code, out, _ = winnow("--version")
    assert code == 0
    assert out.startswith("winnow ")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("a must be 1, got 2 (c.yaml:1)"), 2, "winnow: a must be 1, got 2 (c.yaml:1)\n"),
        (InputError("one\ntwo"), 2, "winnow: one\nwinnow: two\n"),
        (LimitExceeded("too many rejects"), 3, "winnow: too many rejects\n"),
        (WinnowError("other"), 1, "winnow: other\n"),
        (KeyboardInterrupt(), 130, "winnow: stopped; run the same command again to resume\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "w/part"),
            2,
            "winnow: a file cannot be written or read: [Errno 28] No space left on device: 'w/part'\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "w"),
            2,
            "winnow: a file cannot be written or read: [Errno 13] Permission denied: 'w'\n",
        ),
        (PermissionError("Access Denied"), 2, "winnow: a file cannot be written or read: Access Denied\n"),
    ],
)
def test_errors_are_one_clear_line(winnow, error, code, message):
    assert winnow("count", "3", body=raising(error)) == (code, "", message)


def test_being_terminated_is_like_an_interrupt(winnow):
    before = signal.getsignal(signal.SIGTERM)

    def body():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    said = "winnow: stopped; run the same command again to resume\n"
    assert winnow("count", "3", body=body) == (143, "", said)
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_of_ours_counts_wherever_it_was_raised_from(winnow):
    def body():
        try:
            raise InputError("the pool must hold shards, got none")
        except InputError as error:
            raise RuntimeError("step failed") from error

    assert winnow("count", "3", body=body) == (2, "", "winnow: the pool must hold shards, got none\n")


@pytest.mark.parametrize("error", [ValueError("boom"), FileNotFoundError(errno.ENOENT, "boom")])
def test_anything_else_keeps_its_traceback(winnow, error):
    code, _, err = winnow("count", "3", body=raising(error))
    assert code == 1
    first, *rest = err.splitlines()
    assert first.startswith("winnow: unexpected error; please report it with the traceback below")
    assert rest[0] == "Traceback (most recent call last):"
    assert "boom" in rest[-1]


@pytest.mark.parametrize(("name", "module_name"), cli.COMMANDS.items())
def test_every_command_has_what_main_expects(name, module_name):
    assert module_name == f"jobs.{name}"
    module = importlib.import_module(module_name)
    assert module.__doc__.partition("\n")[0].endswith(".")
    assert callable(module.add_arguments)
    assert callable(module.run)


def test_every_name_of_the_library_is_where_it_is_said_to_be():
    for name in winnow_library.__all__:
        assert getattr(winnow_library, name).__name__ == name


def test_set_is_explained(capsys):
    for command in ("compare", "curate", "demo", "evaluate", "train"):
        assert cli.main([command, "--help"]) == 0
        assert "--set KEY=VALUE" in (out := capsys.readouterr().out)
        assert "for a key of the config" in " ".join(out.split())


def test_help_imports_nothing_heavy():
    code = """
        import sys
        from jobs.main import main
        assert main(["--help"]) == 0
        print(sorted({"numpy", "pyarrow", "pydantic", "ray", "torch"} & set(sys.modules)), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("lines", [1, 100_000])  # what is written at the end, and in the middle
def test_output_that_nobody_reads_any_more_ends_a_command_without_a_word(winnow, tmp_path, lines):
    code = textwrap.dedent(f"""
        import importlib, sys
        from jobs import main as cli
        cli.COMMANDS = {{"count": "count_job"}}
        importlib.import_module("count_job").run = lambda args: [print("x" * 99) for _ in range({lines})] and 0
        sys.exit(cli.main(["count", "3"]))
    """)
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
