"""The command `winnow submit`, but for the cluster."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.job_submission import JobStatus

from jobs import submit
from jobs.main import main

CONFIG = {"pool": {"format": "webdataset", "path": "s3://bucket/pool"}, "workspace": "s3://bucket/w", "seed": 3}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """What the command sent to a cluster, and what it made of the reply."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night 1.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    seen = SimpleNamespace(jobs=[], sent=[], followed=[], ended=None)
    seen.ended = SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0, message="")

    def start(client, job, *, again, note):
        folder = Path(job.runtime_env["working_dir"])
        seen.jobs.append((job, again))
        seen.sent.append({path.name: path.read_text() for path in folder.glob("*.yaml")})
        return job.name

    def follow(client, submission_id, out, note):
        seen.followed.append(submission_id)
        if isinstance(seen.ended, BaseException):
            raise seen.ended
        return seen.ended

    monkeypatch.setattr(submit, "job_server", lambda address: contextlib.nullcontext(address))
    monkeypatch.setattr(submit, "start", start)
    monkeypatch.setattr(submit, "follow", follow)
    return seen


def run(*argv: str) -> int:
    return main(["submit", "night 1.yaml", "--address", "http://head:8265", *argv])


def test_a_config_is_sent_with_its_overrides(server, capsys):
    assert run("--set", "seed=4") == 0
    ((job, again),) = server.jobs
    assert json.loads(server.sent[0]["night 1.yaml"]) == CONFIG | {"seed": 4}
    assert job.entrypoint == "python -m jobs.main curate 'night 1.yaml'"
    assert job.name == f"winnow-curate-night-1-{job.digest}"
    assert job.runtime_env["env_vars"] == {}
    assert not Path(job.runtime_env["working_dir"]).exists()
    assert not again
    assert server.followed == [job.name]
    assert capsys.readouterr().err == ""


def test_a_mistake_is_found_before_anything_is_sent(server, capsys):
    assert run("--set", "sead=4") == 2
    assert run("--set", "workspace=runs/w") == 2
    assert run("--command", "train") == 2
    assert run("--working-dir", "nowhere") == 2
    assert run("--pip", "nowhere.txt") == 2
    assert server.jobs == []
    err = capsys.readouterr().err
    assert "sead is not a known key, did you mean seed?" in err
    assert "workspace must be a URL, or an absolute path that all nodes of the cluster share, got runs/w" in err
    assert "--working-dir must be a folder, got nowhere" in err
    assert "--pip must be a file of requirements, got nowhere.txt" in err


def test_without_an_address_it_says_so(server, capsys, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["submit", "night 1.yaml"]) == 2
    assert capsys.readouterr().err == "winnow: --address must be given, such as http://HEAD:8265\n"


def test_only_variables_that_are_named_are_sent_and_none_is_shown(server, capsys, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "curation")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    Path("more.txt").write_text("polars\n")
    assert run("--env", "AWS_PROFILE", "--env", "TOKEN=a=b", "--pip", "more.txt") == 0
    ((job, _),) = server.jobs
    assert job.runtime_env["env_vars"] == {"AWS_PROFILE": "curation", "TOKEN": "a=b"}
    assert job.runtime_env["pip"] == "more.txt"
    assert run("--env", "AWS_MISSING") == 2
    assert run("--env", "=s3cr3t") == 2
    err = capsys.readouterr().err
    assert "a variable that is set here, got AWS_MISSING" in err
    assert "s3cr3t" not in err


def test_what_stays_here_is_said(server, capsys):
    assert run("--set", "storage={secret: s3cr3t, profile: p}", "--set", "pool.path=/shared/pool") == 0
    err = capsys.readouterr().err
    assert "local paths, which all nodes must share or have in their image: pool.sources" in err
    assert "not sent, as they may be credentials: storage.secret." in err
    assert "s3cr3t" not in err
    assert json.loads(server.sent[0]["night 1.yaml"])["storage"] == {"profile": "p"}


def test_names(server):
    run("--id", "mine", "--again")
    assert (server.jobs[0][0].name, server.jobs[0][1]) == ("mine", True)
    run("--command", "nightly")
    job = server.jobs[1][0]
    *_, digest, year, month, day = job.name.split("-")
    assert job.name.startswith("winnow-nightly-night-1-")
    assert (digest, len(year), len(month), len(day)) == (job.digest, 4, 2, 2)
    assert job.name == f"{job.series}-{year}-{month}-{day}"


def test_other_requirements_are_another_job(server):
    for packages in ("polars", "polars", "duckdb"):
        Path("more.txt").write_text(packages)
        run("--pip", "more.txt")
    first, same, other = (job.name for job, _ in server.jobs)
    assert first == same != other


def test_not_followed(server, capsys):
    assert run("--no-wait") == 0
    assert server.followed == []
    assert "not followed" in capsys.readouterr().err


def test_the_exit_code_is_that_of_the_job(server, capsys):
    server.ended = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=3, message="the log, once more")
    assert run("--id", "mine") == 3
    assert (
        capsys.readouterr().err
        == "winnow: mine failed, exit code 3; once that is put right, the same command goes on\n"
    )
    server.ended = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=None, message="runtime_env setup failed")
    assert run("--id", "mine") == 1
    assert capsys.readouterr().err.endswith("resumes it: runtime_env setup failed\n")


def test_an_interrupt_ends_the_following_only(server, capsys):
    server.ended = KeyboardInterrupt()
    assert run("--id", "mine") == 130
    said = "winnow: mine goes on; the same command follows it again, with --stop it ends\n"
    assert capsys.readouterr().err == said


def test_stop(server, monkeypatch):
    stopped = []
    monkeypatch.setattr(submit, "stop", lambda client, job, note: stopped.append((client, job.name)))
    assert run("--stop", "--id", "mine") == 0
    assert stopped == [("http://head:8265", "mine")]
    assert server.jobs == []
