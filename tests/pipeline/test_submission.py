"""What a submission is made of, and how it is found again and followed, without a cluster."""

import ast
import io
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from operators.errors import ConfigError, WinnowError
from pipeline.config.loader import check_document, load_document
from pipeline.curation import Curation
from pipeline.submission import follow as following
from pipeline.submission.attempts import Job, start, stop
from pipeline.submission.follow import exit_code, follow
from pipeline.submission.package import to_yaml, write_package
from pipeline.submission.portable import check_portable, leaves, without_credentials
from pipeline.submission.server import default_address, job_server

SOUND = {"pool": {"format": "webdataset", "path": "s3://bucket/pool"}, "workspace": "s3://bucket/w"}


def written(folder: Path, **changes):
    """A config file with changes to a sound one, as read."""
    (folder / "c.yaml").write_text(yaml.safe_dump(SOUND | changes, sort_keys=False))
    return load_document(str(folder / "c.yaml"))


def checked(folder: Path, working_dir: Path | None = None, **changes) -> list[str]:
    document = written(folder, **changes)
    return check_portable(check_document(document, Curation), document, working_dir)


def test_what_lies_in_a_store_needs_no_word(tmp_path):
    models = {"clip": {"library": "open_clip", "name": "ViT-B-32", "weights": "s3://bucket/clip.safetensors"}}
    assert checked(tmp_path, models=models, steps=[{"step": "score", "model": "clip"}]) == []


def test_local_paths_are_named(tmp_path):
    export = [{"format": "uids", "path": "/shared/subset.npy"}]
    models = {"clip": {"library": "open_clip", "name": "ViT-B-32", "weights": "/models/clip.safetensors"}}
    local = checked(tmp_path, workspace="/shared/w", models=models, export=export)
    assert sorted(local) == ["export.0.path", "models.clip.weights", "workspace"]


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("workspace", {"workspace": "runs/w"}),
        ("pool.sources.webdataset.path", {"pool": {"format": "webdataset", "path": "pool/*.tar"}}),
        ("export.0.path", {"export": [{"format": "uids", "path": "subset.npy"}]}),
    ],
)
def test_a_pool_or_a_place_to_write_is_never_relative(tmp_path, key, changes):
    (tmp_path / "subset.npy").touch()
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, tmp_path, **changes)
    assert "must be a URL, or an absolute path that all nodes of the cluster share, got" in str(caught.value)
    assert key.partition(".")[0] in str(caught.value)
    assert "c.yaml:" in str(caught.value)


def test_a_relative_file_travels_or_is_refused(tmp_path):
    steps = [{"step": "deny", "uids": "lists/deny.txt"}]
    with pytest.raises(ConfigError, match=r"deny\.uids must be a URL, an absolute path on the nodes, or a path within"):
        checked(tmp_path, tmp_path, steps=steps)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/deny.txt").touch()
    assert checked(tmp_path, tmp_path, steps=steps) == []
    with pytest.raises(ConfigError, match=r"--working-dir, got lists/deny\.txt"):
        checked(tmp_path, steps=steps)


def test_what_of_the_folder_stays_here_is_refused(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder / ".hidden/deny.txt", elsewhere / "deny.txt", folder / "lists/deny.txt"):
        path.parent.mkdir(parents=True)
        path.touch()
    (folder / "link").symlink_to(elsewhere)
    for uids in (".hidden/deny.txt", "../elsewhere/deny.txt", "link/deny.txt", "list"):
        with pytest.raises(ConfigError, match=r"within --working-dir, got .*stay here"):
            checked(tmp_path, folder, steps=[{"step": "deny", "uids": uids}])
    for uids in ("./lists/deny.txt", "lists//deny.txt", "lists/"):
        assert checked(tmp_path, folder, steps=[{"step": "deny", "uids": uids}]) == []


def test_an_absolute_path_may_end_in_a_slash(tmp_path):
    pool = {"format": "webdataset", "path": "/shared//pool/"}
    assert sorted(checked(tmp_path, pool=pool, workspace="/shared/w/")) == [
        "pool.sources.0.path",
        "workspace",
    ]


def test_a_module_of_this_folder_travels_or_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_step.py").touch()
    inner = [{"step": "python", "function": "my_step:keep"}, {"step": "exact_dedup"}]
    for steps in (inner[:1], [{"step": "intersection", "of": inner}]):
        with pytest.raises(ConfigError, match=r"must be in a module that the cluster has, got my_step:keep, .*--work"):
            checked(tmp_path, steps=steps)
        assert checked(tmp_path, tmp_path, steps=steps) == []
    assert checked(tmp_path, steps=[{"step": "python", "function": "installed.there:keep"}]) == []


def test_credentials_stay_here(tmp_path):
    storage = {"key": "AKIA", "secret": "s3cr3t", "endpoint_url": "http://minio:9000", "client_kwargs": {"token": "t"}}
    pool = {**SOUND["pool"], "storage": {"secret": "s3cr3t"}}
    value, left_out = without_credentials(written(tmp_path, storage=storage, pool=pool))
    assert value["storage"] == {"endpoint_url": "http://minio:9000", "client_kwargs": {}}
    assert left_out == ["pool.storage.secret", "storage.key", "storage.secret", "storage.client_kwargs.token"]
    assert "s3cr3t" not in json.dumps(value)


def test_a_package_is_all_that_a_job_needs(tmp_path):
    user = tmp_path / "user"
    (user / "my").mkdir(parents=True)
    (user / "my/step.py").write_text("x = 1\n")
    for unwanted in (".git/config", ".env", "venv/pyvenv.cfg", "venv/lib/a.py", "my/__pycache__/step.pyc"):
        (user / unwanted).parent.mkdir(parents=True, exist_ok=True)
        (user / unwanted).touch()
    package = write_package(tmp_path / "sent", "c.yaml", SOUND, user)
    sent = {str(path.relative_to(package.folder)) for path in package.folder.rglob("*") if path.is_file()}
    assert {"c.yaml", "my/step.py", "winnow.py", "jobs/demo.yaml", "operators/errors.py"} <= sent
    assert {"pipeline/report/page.css", "pipeline/report/page.html.j2"} <= sent
    assert {name.partition("/")[0] for name in sent} == {
        *("c.yaml", "my", "winnow.py", "jobs", "operators", "pipeline", "winnow.dist-info")
    }
    assert not [name for name in sent if "__pycache__" in name or "/." in name]
    assert package.files == len(sent)
    # Nothing of this process's own: the folder alone.
    code = "import jobs.main, importlib.metadata as m; print(jobs.main.__file__, m.version('winnow'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package.folder, env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == str(package.folder / "jobs/main.py")


def test_the_digest_is_of_names_and_contents(tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    (user / "a.txt").write_text("1")
    digests = [write_package(tmp_path / "one", "c.yaml", SOUND, user).digest]
    assert write_package(tmp_path / "two", "c.yaml", SOUND, user).digest == digests[0]
    digests.append(write_package(tmp_path / "three", "c.yaml", SOUND | {"seed": 1}, user).digest)
    (user / "a.txt").write_text("2")
    digests.append(write_package(tmp_path / "four", "c.yaml", SOUND, user).digest)
    (user / "a.txt").rename(user / "b.txt")
    digests.append(write_package(tmp_path / "five", "c.yaml", SOUND, user).digest)
    assert len(set(digests)) == 4


def test_a_folder_may_not_take_the_place_of_our_code_unless_it_is_that(tmp_path):
    (tmp_path / "user/pipeline").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"--working-dir must hold no pipeline, .* got .*user/pipeline"):
        write_package(tmp_path / "sent", "c.yaml", SOUND, tmp_path / "user")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "pipeline").symlink_to(Path(following.__file__).parents[1])
    assert write_package(tmp_path / "sent", "c.yaml", SOUND, checkout).files > 100


def test_what_is_too_large_is_not_sent(tmp_path):
    (tmp_path / "user").mkdir()
    with (tmp_path / "user/huge.bin").open("wb") as file:
        file.truncate(600 << 20)
    with pytest.raises(ConfigError, match=r"at most 100 MiB, got 60\d MiB, the largest file huge.bin"):
        write_package(tmp_path / "sent", "c.yaml", SOUND, tmp_path / "user")
    assert not (tmp_path / "sent").exists()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=10)


@given(st.dictionaries(st.text(), VALUES))
def test_a_config_arrives_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_text(to_yaml(value), encoding="utf-8")
    assert load_document(str(path)).value == value


def test_leaves():
    value = {"a": [1, {"b": None}], "c": {}, "d": "x"}
    assert dict(leaves(value)) == {("a", 0): 1, ("a", 1, "b"): None, ("d",): "x"}


@dataclass
class FakeServer:
    """A job server that knows jobs by their ids; `run` sends what its connections are told to, in turn."""

    jobs: dict[str, SimpleNamespace] = field(default_factory=dict)
    connections: list[list[str | Exception]] = field(default_factory=list)
    answers: list[Exception | None] = field(default_factory=list)
    log: str = ""

    def add(self, submission_id, status, code=None, **metadata):
        names = {f"winnow.{key}": value for key, value in metadata.items()}
        self.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id, status=status, metadata=names, driver_exit_code=code, message=""
        )

    def list_jobs(self):
        foreign = SimpleNamespace(submission_id=None, metadata=None)
        return [foreign, *self.jobs.values()]

    def submit_job(self, *, entrypoint, submission_id, runtime_env, metadata):
        if submission_id in self.jobs:
            raise RuntimeError(f"Request failed: Job with submission_id {submission_id} already exists.")
        self.add(submission_id, JobStatus.PENDING)
        self.jobs[submission_id].metadata = metadata

    def stop_job(self, submission_id):
        self.jobs[submission_id].status = JobStatus.STOPPED

    def get_job_info(self, submission_id):
        if self.answers and (error := self.answers.pop(0)):
            raise error
        return self.jobs[submission_id]

    def get_job_logs(self, submission_id):
        return self.log

    async def tail_job_logs(self, submission_id):
        for item in self.connections.pop(0):
            if isinstance(item, Exception):
                raise item
            yield item
        if not self.connections:
            self.jobs[submission_id].status = JobStatus.SUCCEEDED


def started(server, digest="d", again=False):
    notes = []
    job = Job("night", "nights", digest, "python -m jobs.main curate c.yaml", {})
    return start(server, job, again=again, note=notes.append), notes


def test_a_job_is_submitted_once_and_followed_while_it_runs():
    server = FakeServer()
    assert started(server) == ("night", ["submitted as night"])
    assert started(server) == ("night", ["night is running already (PENDING)"])
    with pytest.raises(ConfigError, match="another config or other code that is running, got night"):
        started(server, digest="other")
    assert list(server.jobs) == ["night"]


def test_one_that_succeeded_is_not_repeated_unless_asked_for():
    server = FakeServer()
    server.add("night", JobStatus.SUCCEEDED, name="night", series="nights", attempt="1", digest="d")
    submission_id, notes = started(server)
    assert (submission_id, list(server.jobs)) == ("night", ["night"])
    assert "has succeeded already" in notes[0]
    assert started(server, again=True)[0] == "night-2"
    server.jobs["night-2"].status = JobStatus.SUCCEEDED
    assert started(server, digest="other")[0] == "night-3"


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
def test_one_that_failed_or_was_stopped_has_a_successor(status):
    server = FakeServer()
    server.add("night", JobStatus.SUCCEEDED, name="night", series="nights", attempt="1", digest="d")
    server.add("night-10", status, name="night", series="nights", attempt="10", digest="d")
    server.add("night-9", status, name="night", series="nights", attempt="9", digest="d")
    assert started(server) == (
        "night-11",
        [f"submitted as night-11, which goes on where night-10 ended ({status})"],
    )


def test_the_same_command_twice_at_once_is_one_job():
    server = FakeServer()
    submit, listed = server.submit_job, []

    def submit_second(**options):
        if not listed:
            listed.append(True)
            submit(**options)  # the other command was faster
        submit(**options)

    server.submit_job = submit_second
    assert started(server) == ("night", ["night is running already (PENDING)"])


def test_an_id_of_a_job_that_is_none_of_ours_is_refused():
    server = FakeServer()
    server.add("night", JobStatus.RUNNING)
    with pytest.raises(ConfigError, match="--id must not be that of a job of another kind, got night"):
        started(server)


def test_a_night_that_runs_stands_for_the_next():
    server = FakeServer()
    started(server)
    tomorrow, notes = Job("tomorrow", "nights", "d", "", {}), []
    assert start(server, tomorrow, again=False, note=notes.append) == "night"
    assert notes == ["night is running already (PENDING)"]
    stop(server, tomorrow, notes.append)
    assert server.jobs["night"].status == JobStatus.STOPPED
    assert start(server, tomorrow, again=False, note=notes.append) == "tomorrow"


def test_a_job_that_an_earlier_version_submitted_is_known():
    server = FakeServer()
    server.add("night", JobStatus.RUNNING, name="night", attempt="1", digest="d")
    notes = []
    assert start(server, Job("night", "night", "d", "", {}), again=False, note=notes.append) == "night"
    assert notes == ["night is running already (RUNNING)"]


def test_only_what_runs_is_stopped():
    server, notes = FakeServer(), []
    with pytest.raises(ConfigError, match="none of the name night"):
        stop(server, Job("night", "nights", "d", "", {}), notes.append)
    started(server)
    stop(server, Job("night", "nights", "d", "", {}), notes.append)
    assert server.jobs["night"].status == JobStatus.STOPPED
    stop(server, Job("night", "nights", "d", "", {}), notes.append)
    assert notes[0].startswith("night was told to stop")
    assert notes[1] == "night has ended already (STOPPED)"


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(following, "_RETRY_SECONDS", 0.0)


def followed(server):
    out, notes = io.StringIO(), []
    server.add("night", JobStatus.RUNNING, code=0)
    ended = follow(server, "night", out, notes.append)
    return out.getvalue(), notes, ended.status


def test_a_log_is_shown_once_through_lost_connections(at_once):
    server = FakeServer(log="one\ntwo\nthree\nfour\n")
    lost = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    server.connections = [["one\n", "tw", lost], [ConnectionError("refused")], ["one\ntwo\nth", "ree\n"]]
    out, notes, status = followed(server)
    assert out == "one\ntwo\nthree\nfour\n"
    assert status == JobStatus.SUCCEEDED
    said = "the connection was lost, and night goes on; trying again (RuntimeError: WebSocket connection closed"
    assert notes[0].startswith(said)
    assert notes[1:] == ["connected again"]


def test_where_no_stream_is_let_through_the_log_is_asked_for(at_once):
    """As by a proxy that knows no WebSockets."""
    server = FakeServer()
    texts = ["one\n", "one\ntwo\n", "one\ntwo\nthree\n"]

    def get_job_logs(submission_id):
        if len(texts) == 1:
            server.jobs[submission_id].status = JobStatus.SUCCEEDED
            return texts[0]
        return texts.pop(0)

    server.get_job_logs = get_job_logs
    server.connections = [[ConnectionError("refused")] for _ in range(9)]
    out, notes, status = followed(server)
    assert (out, status) == ("one\ntwo\nthree\n", JobStatus.SUCCEEDED)
    assert notes == ["the connection was lost, and night goes on; trying again (ConnectionError: refused)"]


def test_a_job_whose_log_is_gone_has_ended_all_the_same(at_once, monkeypatch):
    monkeypatch.setattr(following, "_GIVE_UP_SECONDS", 0.0)
    server = FakeServer(connections=[[]])

    def get_job_logs(submission_id):
        raise RuntimeError("Request failed with status code 500")

    server.get_job_logs = get_job_logs
    out, notes, status = followed(server)
    assert (out, status) == ("", JobStatus.SUCCEEDED)
    assert notes[-1] == "the rest of its log could not be had (RuntimeError: Request failed with status code 500)"


def test_an_output_that_is_closed_is_no_lost_connection(at_once):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    server = FakeServer(connections=[["one\n"]])
    server.add("night", JobStatus.RUNNING, code=0)
    with pytest.raises(BrokenPipeError):
        follow(server, "night", Closed(), lambda said: pytest.fail(said))


def test_a_connection_that_goes_silent_is_made_anew(at_once, monkeypatch):
    monkeypatch.setattr(following, "_SILENT_SECONDS", 0.05)
    server = FakeServer(log="one\ntwo\n", connections=[["one\n"], ["one\n", "two\n"]])
    tail = server.tail_job_logs

    async def silent(submission_id):
        last = len(server.connections) == 2
        async for chunk in tail(submission_id):
            yield chunk
        if last:
            await following.asyncio.sleep(60)

    server.tail_job_logs = silent
    assert followed(server) == ("one\ntwo\n", [], JobStatus.SUCCEEDED)


def test_a_cluster_that_forgot_the_job_or_never_answers_ends_it(at_once, monkeypatch):
    gone = RuntimeError("Request failed with status code 404: Job night does not exist.")
    with pytest.raises(WinnowError, match="night must be known to the cluster"):
        followed(FakeServer(answers=[gone]))
    monkeypatch.setattr(following, "_GIVE_UP_SECONDS", 0.0)
    with pytest.raises(WinnowError, match="must answer within 0 seconds, got ConnectionError: refused"):
        followed(FakeServer(answers=[ConnectionError("refused")] * 2))


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 143),
    ],
)
def test_exit_codes_are_those_of_the_job(status, driver, code):
    assert exit_code(SimpleNamespace(status=status, driver_exit_code=driver)) == code


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1/", "ray://127.0.0.1:1", "http://"])
def test_an_address_where_nothing_listens(address):
    with pytest.raises(ConfigError, match="--address must be that of the dashboard"), job_server(address):
        pass


def test_the_address_of_the_environment_is_that_of_a_dashboard(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert default_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    assert default_address() == "http://10.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example")
    assert default_address() == "https://ray.example"


def test_the_code_that_travels_imports_nothing_that_does_not():
    """Every top-level name of ours that any module imports is in the package."""
    ours = {"jobs", "pipeline", "operators", "winnow"}
    root = Path(following.__file__).parents[2]
    there = {path.stem for path in root.glob("*.py")} | {path.name for path in root.iterdir() if path.is_dir()}
    used = set()
    for path in [root / "winnow.py", *(path for name in ours for path in (root / name).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
    assert used & there <= ours
