"""Lines of JSON: what they hold, who asks for them, and that nobody else sees them."""

import io
import json
import logging
import os
import re
import subprocess
import sys

import pytest

from jobs import main as cli
from operators.errors import ConfigError, InputError
from pipeline import logs, remote
from pipeline.progress import JsonProgress, LogProgress, open_progress

JOB = '''"""Does what it is told."""


def add_arguments(parser):
    pass


def run(args):
    from pipeline.progress import open_progress

    with open_progress() as progress, progress.step("rules", total=4) as step:
        step.advance(3, dropped=1)
        progress.note("something", shard="a.tar")
    return 0
'''


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (logs.VARIABLE, logs.RUN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def job(tmp_path, monkeypatch, capsys):
    """Runs `winnow told` with a body in place of its own; gives exit code, the lines in JSON, and other lines."""
    (tmp_path / "told_job.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "COMMANDS", {"told": "told_job"})
    import told_job

    def run(*argv, body=None):
        if body:
            monkeypatch.setattr(told_job, "run", lambda _: body())
        code = cli.main(["told", *argv])
        lines = capsys.readouterr().err.splitlines()
        return code, [json.loads(line) for line in lines if line[0] == "{"], [line for line in lines if line[0] != "{"]

    yield run
    sys.modules.pop("told_job", None)


def test_a_job_in_json(job):
    code, lines, others = job("--log", "json")
    assert (code, others) == (0, [])
    assert [line["event"] for line in lines if "event" in line] == ["job started", "started", "done", "job ended"]
    assert len({line["run"] for line in lines}) == 1
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    assert {line["level"] for line in lines} == {"info"}
    note, done = lines[2], lines[3]
    assert (note["message"], note["shard"]) == ("something", "a.tar")
    assert {name: done[name] for name in ("step", "rows", "total", "unit", "counts")} == {
        "step": "rules",
        "rows": 3,
        "total": 4,
        "unit": "rows",
        "counts": {"dropped": 1},
    }
    assert done["message"] == "rules: done, 3 rows in 0.0 s, 1 dropped"
    assert lines[-1]["exit_code"] == 0


def test_without_json_all_is_as_ever(job):
    code, lines, others = job()
    assert (code, lines) == (0, [])
    assert [line.partition(" ")[2] for line in others] == [
        "rules: started, 4 rows",
        "something",
        "rules: done, 3 rows in 0.0 s, 1 dropped",
    ]


def test_the_environment_asks_for_it_and_gives_the_run(job, monkeypatch):
    monkeypatch.setenv(logs.VARIABLE, "json")
    monkeypatch.setenv(logs.RUN_VARIABLE, "nightly-7")
    assert {line["run"] for line in job()[1]} == {"nightly-7"}
    assert job("--log", "text")[1] == []
    monkeypatch.setenv(logs.VARIABLE, "xml")
    code, _, others = job()
    assert (code, others) == (2, ["winnow: WINNOW_LOG must be text or json, got 'xml'"])


def test_what_workers_inherit_ends_with_the_command():
    with logs.configured("json"):
        assert logs.environment() == {logs.VARIABLE: "json", logs.RUN_VARIABLE: logs.run_id()}
        assert os.environ.items() >= logs.environment().items()
        with logs.configured("text"):
            assert logs.environment() == {}
    assert logs.VARIABLE not in os.environ
    with pytest.raises(ConfigError, match=r"^WINNOW_LOG must be text or json, got 'xml'$"), logs.configured("xml"):
        pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("the pool must hold shards, got none"), 2, "the pool must hold shards, got none"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to resume"),
        (ValueError("boom"), 1, None),
    ],
)
def test_errors_are_lines_too(job, error, code, message):
    def body():
        raise error

    ended, (_, line), others = job("--log", "json", body=body)
    assert (ended, others) == (code, [])
    assert (line["level"], line["exit_code"], line["event"]) == ("error", code, "job ended")
    assert message is None or line["message"] == message
    assert ("boom" in line.get("traceback", "")) == (code == 1)


def test_fields_are_bound_for_a_while(capsys):
    with logs.configured("json"), logs.bound(workspace="w"):
        with logs.bound(shard="a.tar"):
            logs.warn("first", rows=3, total=None)
        logs.warn("second")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["workspace"], first["shard"], first["rows"], "total" in first) == ("w", "a.tar", 3, False)
    assert (second["workspace"], "shard" in second) == ("w", False)


def test_a_store_that_is_asked_again(capsys, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.0)
    answers = iter([ConnectionResetError("secret"), TimeoutError("secret"), b"data"])

    def read():
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    with logs.configured("json"):
        assert remote.retry(read) == b"data"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["error"], line["attempt"]) for line in lines] == [("ConnectionResetError", 1), ("TimeoutError", 2)]
    assert "secret" not in str(lines)


def test_a_library_hears_it_without_asking(caplog, capsys):
    with caplog.at_level(logging.INFO, "winnow"):
        logs.warn("damaged shard: a.tar (truncated)", shard="a.tar")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("winnow", "damaged shard: a.tar (truncated)")
    ]
    assert capsys.readouterr().err == ""


def test_a_worker_needs_no_command():
    code = "from pipeline import logs; logs.warn('hello', shard='a.tar')"
    for form, heard in (("json", True), ("text", False)):
        environment = os.environ | {logs.VARIABLE: form, logs.RUN_VARIABLE: "r"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert bool(done.stderr) == heard
    assert logs.run_id() != "r"


def test_the_display_is_of_the_form(monkeypatch):
    monkeypatch.setenv(logs.VARIABLE, "json")
    assert type(open_progress(io.StringIO())) is JsonProgress
    monkeypatch.setenv(logs.VARIABLE, "text")
    assert type(open_progress(io.StringIO())) is LogProgress
