"""The driver of a training is killed in the middle; the same command then gives the weights of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from tests.small_trainings import training, write_pool

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(600)]


def start(folder: Path, workspace: str) -> subprocess.Popen:
    resources = {"threads": 1, "cpus": 2, "object_store_bytes": 200_000_000}
    settings = training(folder, workspace, samples_seen=300 * 16, checkpoint_every=10, resources=resources)
    path = folder / f"{workspace}.yaml"
    path.write_text(yaml.safe_dump(json.loads(settings.model_dump_json())))
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.main", "train", str(path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, workspace: str) -> str:
    process = start(folder, workspace)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return output


def test_a_killed_driver_resumes_to_the_same_weights(tmp_path):
    write_pool(tmp_path)
    assert "model:" in finish(tmp_path, "undisturbed")
    process = start(tmp_path, "killed")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("training/*/checkpoints/*/manifest.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the training did not begin"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed/model/training.json").exists()
    assert "reused" not in finish(tmp_path, "killed")
    assert "reused" in finish(tmp_path, "killed")
    expected = load_file(tmp_path / "undisturbed/model/open_clip_model.safetensors")
    for name, tensor in load_file(tmp_path / "killed/model/open_clip_model.safetensors").items():
        np.testing.assert_allclose(tensor.numpy(), expected[name].numpy(), atol=1e-5)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("undisturbed", "killed")]
    curves = [[json.loads(line)["loss"] for line in curve] for curve in lines]
    assert len(curves[0]) == 300
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-5)
