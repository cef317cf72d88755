"""Two drivers on one workspace: one winner and one clear error; a stopped one is replaced, and finds out."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3fs
import yaml
from moto.server import ThreadedMotoServer

from pipeline.ledger import ledger_sha256
from pipeline.storage import Store
from tests.small_pools import sound, tar_bytes

pytestmark = pytest.mark.faults

ROOT = str(Path(__file__).parents[2])
STEP = """
import pathlib
import time


def keep(table):
    while "5" in str(table["shard"][0]) and not pathlib.Path("{go}").exists():
        time.sleep(0.1)
    return [True] * table.num_rows
"""


@pytest.fixture(scope="module")
def storage():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    storage = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
    fs = s3fs.S3FileSystem(**storage)
    fs.mkdir("contested")
    for number in range(6):
        fs.pipe(f"contested/pool/{number}.tar", tar_bytes(sound(10)))
    yield storage
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def start(*arguments: str, folder: Path | None = None) -> subprocess.Popen:
    paths = os.pathsep.join([*([str(folder)] if folder else []), ROOT])
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder or ROOT,
        env=os.environ | {"PYTHONPATH": paths, "WINNOW_LEASE_RENEW_SECONDS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def hold(storage: dict, url: str, name: str, turns: int) -> subprocess.Popen:
    return start("tests.faults.holder", url, json.dumps(storage), name, str(turns))


def test_the_second_stops_and_a_stopped_one_is_replaced(storage):
    url = "s3://contested/two"
    store = Store(url, storage)
    first = hold(storage, url, "first", 10_000)
    try:
        assert first.stdout.readline() == "held\n"
        second = hold(storage, url, "second", 1)
        said = second.communicate(timeout=60)[0]
        assert second.returncode == 2
        assert f"{url} must be used by one run at a time, got a second one, while " in said
        assert f"(process {first.pid}) has had it since 2" in said
        os.kill(first.pid, signal.SIGSTOP)
        third = hold(storage, url, "third", 3)
        said = third.communicate(timeout=60)[0]
        assert third.returncode == 0, said
        assert said.splitlines()[0].startswith("waiting up to 6 s to see whether ")
        assert store.read("summary.json") == b"third 2"
        os.kill(first.pid, signal.SIGCONT)
        said = first.communicate(timeout=60)[0]
        assert first.returncode == 2
        assert "got replaced: this run did not renew its lease for 6 seconds, and another one took it over" in said
        assert store.read("summary.json") == b"third 2"
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


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
@pytest.mark.timeout(600)
def test_curations(storage, tmp_path):
    go = tmp_path / "go"
    (tmp_path / "slow_step.py").write_text(STEP.format(go=go))
    go.touch()
    undisturbed = curate(tmp_path, write_config(tmp_path, storage, "undisturbed"))
    said = undisturbed.communicate(timeout=300)[0]
    assert undisturbed.returncode == 0, said
    go.unlink()
    config, store = write_config(tmp_path, storage, "contested"), Store("s3://contested/contested", storage)
    first = curate(tmp_path, config)
    try:
        deadline = time.monotonic() + 120
        while not any(name.endswith("part.json") for name in store.find("python")):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < deadline, "the step did not begin"
            time.sleep(0.1)
        second = curate(tmp_path, config)
        said = second.communicate(timeout=120)[0]
        assert second.returncode == 2, said
        assert f"(process {first.pid}) has had it since" in said
        os.kill(first.pid, signal.SIGSTOP)
        go.touch()  # for the workers of the first, too
        third = curate(tmp_path, config)
        said = third.communicate(timeout=300)[0]
        assert third.returncode == 0, said
        single = {name: store.read(name) for name in ("run.json", "summary.json", "ledger.json", "report.html")}
        os.kill(first.pid, signal.SIGCONT)
        said = first.communicate(timeout=120)[0]
        assert first.returncode == 2, said
        assert "must be used by one run at a time, got replaced" in said
        assert {name: store.read(name) for name in single} == single
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert ledger_sha256(store) == ledger_sha256(Store("s3://contested/undisturbed", storage))
