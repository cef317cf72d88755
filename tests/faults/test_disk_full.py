"""A disk that fills up stops a run with one clear line; once there is space, the same command goes on."""

import io
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from operators.errors import WorkspaceError
from pipeline.artifact import publish_part, read_columns
from pipeline.ledger import ledger_sha256
from pipeline.parts import Part
from pipeline.storage import Store
from tests.small_pools import tar_bytes

pytestmark = pytest.mark.faults

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 20 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs, got: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def write_pool(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for shard in range(6):
        samples = []
        for number in range(200):
            buffer = io.BytesIO()
            pixels = draws.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            samples.append({"png": buffer.getvalue(), "txt": b"%d of %d" % (number, shard)})
        (folder / f"{shard}.tar").write_bytes(tar_bytes(samples))


def curate(folder: Path, workspace: Path) -> subprocess.CompletedProcess:
    config = {
        "pool": {"format": "webdataset", "path": f"{folder}/*.tar"},
        "workspace": str(workspace),
        "models": {"raw": {"library": "pixels", "size": 64}},  # 29 MB in all: noise does not shrink
        "steps": [{"step": "prune", "method": "dbp", "model": "raw", "clusters": 4, "keep": 600, "neighbours": 2}],
        "report": False,
        "resources": {"workers": 2, "object_store_bytes": 200_000_000},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs.main", "curate", str(folder / "c.yaml")]
    environment = os.environ | {"PYTHONPATH": ROOT}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def test_a_part_that_does_not_fit(tmp_path):
    """By the size that the system allows a file, which needs no rights; the rest is the same for a full disk."""
    store = Store(str(tmp_path / "w"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        message = pool.apply(publish_too_much, (store,))
    assert message == f"{store.url} must be a folder that can be written to, got: File too large"
    assert store.find("") == {}
    part = publish(store)
    assert store.size(part.path) == part.size > LIMIT
    assert read_columns(store, part.path).equals(TABLE)


LIMIT = 100_000
TABLE = pa.table({"x": np.random.default_rng(0).random(LIMIT // 4)})


def publish_too_much(store: Store) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    with pytest.raises(WorkspaceError) as caught:
        publish(store)
    return str(caught.value)


def publish(store: Store) -> Part:
    return publish_part(store, "step/0123456789abcdef", Part("a.tar", "a" * 16, "", 0, 0, ""), [TABLE], TABLE.schema)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_full_disk(small_disk, tmp_path):
    write_pool(tmp_path)
    stopped = curate(tmp_path, small_disk / "w")
    assert stopped.returncode == 2, stopped.stderr
    assert "No space left on device" in stopped.stderr.splitlines()[-1]
    assert stopped.stderr.splitlines()[-1].startswith("winnow: ")
    assert "Traceback" not in stopped.stderr
    assert not (small_disk / "w" / "summary.json").exists()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    resumed = curate(tmp_path, small_disk / "w")
    assert resumed.returncode == 0, resumed.stderr
    undisturbed = curate(tmp_path, tmp_path / "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert ledger_sha256(Store(str(small_disk / "w"))) == ledger_sha256(Store(str(tmp_path / "undisturbed")))
    assert not list((small_disk / "w").rglob(".attempt-*"))
