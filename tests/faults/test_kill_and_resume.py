"""The driver is killed in the middle; the same command then gives the ledger of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.generate import generate_pool
from pipeline.ledger import ledger_sha256
from pipeline.pool_plan import PoolSettings
from pipeline.storage import Store

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.long]

SLOW = """
import time


def keep(table):
    time.sleep(0.5)
    return [int(key[-1:]) % 3 != 0 for key in table["key"].to_pylist()]
"""


def write_config(folder: Path, name: str) -> tuple[Path, Store]:
    """A config whose `python` step takes half a second a shard, so that a kill finds it half done."""
    config = {
        "pool": {"format": "webdataset", "path": f"{folder}/data/pool/*.tar"},
        "workspace": str(folder / name),
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": [
            {"step": "python", "function": "slow_filter:keep", "columns": ["key"]},
            {"step": "prune", "method": "dbp", "model": "raw", "clusters": 8, "keep_fraction": 0.5, "neighbours": 3},
        ],
        "report": False,
        "resources": {"workers": 2, "object_store_bytes": 200_000_000},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, Store(str(folder / name))


def start(config: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.main", "curate", str(config)]
    paths = [str(config.parent), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        command, cwd=config.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(config: Path) -> None:
    process = start(config)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


@pytest.mark.timeout(600)
def test_a_killed_driver_resumes_to_the_same_ledger(tmp_path):
    generate_pool(tmp_path / "data", PoolSettings(samples=320, samples_per_shard=20, broken=False))
    (tmp_path / "slow_filter.py").write_text(SLOW)
    undisturbed, expected = write_config(tmp_path, "undisturbed")
    finish(undisturbed)
    killed, store = write_config(tmp_path, "killed")
    process = start(killed)
    deadline = time.monotonic() + 120
    while sum(name.endswith("part.json") for name in store.find("python")) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the step did not begin"
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = [name for name in store.find("python") if name.endswith("part.json")]
    assert 3 <= len(done) < 16
    before = {name: Path(store.path(name)).stat().st_mtime_ns for name in done}
    finish(killed)
    assert {name: Path(store.path(name)).stat().st_mtime_ns for name in done} == before
    assert ledger_sha256(store) == ledger_sha256(expected)
