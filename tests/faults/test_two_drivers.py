"""Two drivers on one workspace: one winner and one clear error; a stopped one is replaced, and finds out."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs
import yaml

from pipeline.ledger import ledger_sha256
from pipeline.storage import Store
from tests.small_pools import sound, tar_bytes

pytestmark = pytest.mark.faults

ROOT = str(Path(__file__).parents[2])
URL = "s3://contested/two"
STEP = """
import pathlib
import time


def keep(table):
    while "5" in str(table["shard"][0]) and not pathlib.Path("{go}").exists():
        time.sleep(0.1)
    return [True] * table.num_rows
"""


@pytest.fixture(scope="module")
def storage(s3_server):
    storage = {"endpoint_url": s3_server, "key": "k", "secret": "s"}
    fs = s3fs.S3FileSystem(**storage)
    fs.mkdir("contested")
    for number in range(6):
        fs.pipe(f"contested/pool/{number}.tar", tar_bytes(sound(10)))
    return storage


def start(*arguments: str, folder: Path | None = None) -> subprocess.Popen:
    paths = os.pathsep.join([*([str(folder)] if folder else []), ROOT])
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder or ROOT,
        env=os.environ | {"PYTHONPATH": paths, "WINNOW_LEASE_RENEW_SECONDS": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def hold(storage: dict, name: str, patience: float = 600) -> subprocess.Popen:
    """A driver that is taken for dead after so many seconds: none is, however slow the machine, unless that is few."""
    return start("tests.faults.holder", URL, json.dumps(storage), name, str(patience))


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Ends a process however its test does."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def test_the_second_stops(storage):
    with ended(hold(storage, "first")) as first:
        assert first.stdout.readline() == "held\n"
        with ended(hold(storage, "second")) as second:
            said = second.communicate(timeout=200)[0]
        assert second.returncode == 2
        assert f"{URL} must be used by one run at a time, got a second one, while " in said
        assert f"(process {first.pid}) has had it since 2" in said
        assert first.poll() is None


def test_one_that_is_stopped_is_replaced_and_finds_out(storage):
    """The one before was killed: on this machine that is known at once."""
    store = Store(URL, storage)
    with ended(hold(storage, "zombie", patience=1)) as zombie:
        assert zombie.stdout.readline() == "held\n"
        os.kill(zombie.pid, signal.SIGSTOP)
        with ended(hold(storage, "third")) as third:
            said = third.communicate("\n\n", timeout=200)[0]
        assert third.returncode == 0, said
        assert said.splitlines()[0].startswith("waiting up to 1 s to see whether ")
        assert store.read("summary.json") == b"third 2"
        os.kill(zombie.pid, signal.SIGCONT)
        said = zombie.communicate("\n", timeout=200)[0]
        assert zombie.returncode == 2
        assert "got replaced: this run did not renew its lease for 1 seconds, and another one took it over" in said
        assert store.read("summary.json") == b"third 2"
    assert [name for name in store.find(".lease") if name.endswith(".json")] == []


def write_config(folder: Path, storage: dict, name: str) -> Path:
    source = {"format": "webdataset", "path": "s3://contested/pool/*.tar", "storage": storage}
    step = {"step": "python", "function": "slow_step:keep", "columns": ["key", "shard"]}
    config = {
        "pool": source,
        "workspace": f"s3://contested/{name}",
        "storage": storage,
        "steps": [step, {"step": "exact_dedup"}],
        "resources": {"workers": 2, "object_store_bytes": 200_000_000},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder / f"{name}.yaml"


def curate(folder: Path, config: Path) -> subprocess.Popen:
    return start("jobs.main", "curate", str(config), folder=folder)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_curations(storage, tmp_path):
    go = tmp_path / "go"
    (tmp_path / "slow_step.py").write_text(STEP.format(go=go))
    go.touch()
    with ended(curate(tmp_path, write_config(tmp_path, storage, "undisturbed"))) as undisturbed:
        said = undisturbed.communicate(timeout=300)[0]
    assert undisturbed.returncode == 0, said
    go.unlink()
    config, store = write_config(tmp_path, storage, "contested"), Store("s3://contested/contested", storage)
    with ended(curate(tmp_path, config)) as first:
        deadline = time.monotonic() + 300
        while not any(name.endswith("part.json") for name in store.find("python")):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < deadline, "the step did not begin"
            time.sleep(0.1)
        with ended(curate(tmp_path, config)) as second:
            said = second.communicate(timeout=300)[0]
        assert second.returncode == 2, said
        assert f"(process {first.pid}) has had it since" in said
        os.kill(first.pid, signal.SIGSTOP)
        go.touch()  # for the workers of the first, too
        with ended(curate(tmp_path, config)) as third:
            said = third.communicate(timeout=300)[0]
        assert third.returncode == 0, said
        single = {name: store.read(name) for name in ("run.json", "summary.json", "ledger.json", "report.html")}
        os.kill(first.pid, signal.SIGCONT)
        said = first.communicate(timeout=300)[0]
        assert first.returncode == 2, said
        assert "must be used by one run at a time, got replaced" in said
        assert {name: store.read(name) for name in single} == single
    assert ledger_sha256(store) == ledger_sha256(Store("s3://contested/undisturbed", storage))
