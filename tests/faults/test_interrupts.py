"""Ctrl-C and SIGTERM: each job ends, says how to go on, and leaves no process behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.small_pools import sound, write_tar
from tests.small_trainings import training, write_pool

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(600)]

ROOT = str(Path(__file__).parents[2])
LIMIT = 200
"""Seconds after which a test is given up, on a machine that does other things, too."""
MARK = "WINNOW_TEST_OF_INTERRUPTS"
RESOURCES = {"workers": 2, "object_store_bytes": 200_000_000}
SLOW = "import time\n\n\ndef keep(table):\n    time.sleep(600)\n    return [True] * table.num_rows\n"


def plain(model) -> dict:
    return yaml.safe_load(model.model_dump_json())


def curate(folder: Path) -> tuple[dict, str]:
    for number in range(4):
        write_tar(folder / f"pool-{number}.tar", sound(8))
    (folder / "slow_step.py").write_text(SLOW)
    steps = [{"step": "python", "function": "slow_step:keep", "columns": ["key"]}]
    pool = {"format": "webdataset", "path": f"{folder}/pool-*.tar"}
    return {"pool": pool, "workspace": "w", "steps": steps, "resources": RESOURCES}, "python: started"


def train(folder: Path) -> tuple[dict, str]:
    write_pool(folder)
    resources = {"threads": 1, "cpus": 2, "object_store_bytes": 200_000_000}
    return plain(training(folder, "w", samples_seen=10**6 * 16, resources=resources)), "train: started"


def train_group(folder: Path) -> tuple[dict, str]:
    config, sign = train(folder)
    return {**config, "resources": {**config["resources"], "workers": 2}}, sign


def evaluate(folder: Path) -> tuple[dict, str]:
    write_pool(folder)
    pool = {"format": "webdataset", "path": f"{folder}/*.tar", "max_reject_fraction": 0.1}
    model = {"library": "open_clip", "name": f"{folder}/tiny.json", "weights": "random"}
    tasks = [{"task": "retrieval", "name": f"pairs{number}", "data": pool} for number in range(30)]
    config = {"workspace": "w", "models": {"clip": model}, "tasks": tasks, "resources": RESOURCES}
    return config | {"bootstrap": 200_000}, "samples, clip.image: started"


def compare(folder: Path) -> tuple[dict, str]:
    write_pool(folder)
    pool = {"format": "webdataset", "path": f"{folder}/*.tar", "max_reject_fraction": 0.1}
    recipe = plain(training(folder, "w", samples_seen=10**6 * 16))
    kept = ("model", "samples_seen", "batch_size", "optimizer", "schedule", "augment")
    config = {
        "pool": pool,
        "workspace": "w",
        "selections": {"all": [], "half": [{"step": "filter", "column": "bytes", "keep_fraction": 0.5}]},
        "seeds": [0],
        "training": {key: recipe[key] for key in kept} | {"resources": {"threads": 1}},
        "evaluation": [{"task": "retrieval", "name": "pairs", "data": pool}],
        "resources": RESOURCES,
    }
    return config, "train: started"


@pytest.mark.parametrize(
    ("command", "job", "number"),
    [
        ("curate", curate, signal.SIGINT),
        ("curate", curate, signal.SIGTERM),
        ("train", train, signal.SIGINT),
        ("train", train_group, signal.SIGTERM),
        ("evaluate", evaluate, signal.SIGINT),
        ("compare", compare, signal.SIGINT),
    ],
)
def test_a_job_that_is_stopped(tmp_path, command, job, number):
    config, sign = job(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.main", command, "c.yaml"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT]), MARK: str(tmp_path)},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=heeding,
        )
    try:
        deadline = time.monotonic() + LIMIT
        while sign not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(number)
        process.wait(LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, log.read_text()
    assert log.read_text().splitlines()[-1] == "winnow: stopped; run the same command again to resume"
    assert "Traceback" not in log.read_text()
    assert list((tmp_path / "w" / ".lease").iterdir()) == [], "the next run need not wait"
    deadline = time.monotonic() + LIMIT
    while (left := processes(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def heeding() -> None:
    """What a shell starts in the background ignores interrupts, and so does all that this starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes(folder: Path) -> list[str]:
    """The command lines of what was started with our mark in its environment: Ray hands it on to all that it starts."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in (place / "environ").read_bytes().split(b"\0"):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
