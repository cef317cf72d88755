"""`winnow submit`, and `winnow curate` with RAY_ADDRESS, on a Ray of two unequal nodes that `ray start` began."""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.demo import configure, prepare
from pipeline.config.loader import canonical
from pipeline.generate import generate_pool
from pipeline.ledger import read_ledger
from pipeline.pool_plan import PoolSettings
from pipeline.storage import Store
from pipeline.submission.package import to_yaml
from tests.cluster.ray_start import RayStart, free_port
from tests.faults.outcomes import WORK, Outcome, Tally, compare, read_outcome

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(600)]

OWN_STEP = """\
import os
import time
from pathlib import Path

import pipeline
import ray


def keep(table):
    folder = Path(os.environ["OWN_FOLDER"])
    (folder / f"{ray.get_runtime_context().get_node_id()}.node").write_text(pipeline.__file__)
    while not (folder / "go").exists():
        time.sleep(0.05)
    return [uid[-1] % 5 > 0 for uid in table["uid"].to_pylist()]
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The code under test, and nothing that would lead to another Ray."""
    root = str(Path(__file__).parents[2])
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return own | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    generate_pool(folder / "pool", PoolSettings(samples=150, samples_per_shard=25))
    return folder


@pytest.fixture(scope="module")
def cluster(environment):
    """A head of two CPUs; the tests add and lose nodes of one."""
    ray = RayStart(environment, num_cpus=2)
    yield ray
    ray.close()


def write_job(inputs: Path, folder: Path, **changes) -> Path:
    """A config in a folder, with the step of the user's that it needs; the workspace lies in the folder, too."""
    folder.mkdir()
    (folder / "sent").mkdir()
    (folder / "sent/own_step.py").write_text(OWN_STEP)
    config = {
        "pool": {"format": "webdataset", "path": f"{inputs}/pool/pool/*.tar", "max_reject_fraction": 0.5},
        "workspace": f"{folder}/{WORK}",
        "models": {"raw": {"library": "pixels", "size": 8}},
        "steps": [
            {"step": "exact_dedup"},
            {"step": "python", "function": "own_step:keep", "columns": ["uid"]},
            {"step": "prune", "method": "dbp", "model": "raw", "clusters": 6, "keep_fraction": 0.6, "neighbours": 3},
        ],
        "export": [{"format": "uids", "path": f"{folder}/subset.npy"}],
        "report": False,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config | changes, sort_keys=False))
    return folder


def winnow(environment, *argv: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.main", *argv]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def submit(cluster: RayStart, folder: Path, *argv: str) -> tuple[int, str, str]:
    command = ("submit", "c.yaml", "--address", cluster.address, "--working-dir", "sent", *argv)
    return finish(winnow(cluster.environment, *command, cwd=folder))


def outcome(folder: Path) -> Outcome:
    """Without the files that are not the curation's."""
    found = read_outcome(Store(str(folder)))
    exported = {path: digest for path, digest in found.files.items() if path == "subset.npy"}
    return Outcome(found.samples, found.ledger, found.data, exported)


@pytest.fixture(scope="module")
def expected(inputs, environment, tmp_path_factory) -> Outcome:
    """What the curation comes to on this machine, without a cluster."""
    folder = write_job(inputs, tmp_path_factory.mktemp("local") / "job")
    (folder / "go").touch()
    code, _, err = finish(winnow(environment | {"OWN_FOLDER": str(folder)}, "curate", "../c.yaml", cwd=folder / "sent"))
    assert code == 0, err
    return outcome(folder)


def assert_same(expected: Outcome, folder: Path) -> None:
    tally = Tally()
    compare(expected, outcome(folder), "on the cluster", tally)
    assert tally.good, tally.show()


def test_a_job_survives_its_client_and_a_node_and_ends_as_it_does_here(cluster, inputs, expected, tmp_path):
    second = cluster.join(num_cpus=1)
    folder = write_job(inputs, tmp_path / "job")
    own = ("--env", f"OWN_FOLDER={folder}")
    code, out, err = submit(cluster, folder, "--no-wait", *own)
    assert (code, out) == (0, "")
    name = re.search(r"submitted as (winnow-curate-c-\w+)", err)[1]
    assert "local paths, which all nodes must share or have in their image: " in err

    command = ("submit", "c.yaml", "--address", cluster.address, "--working-dir", "sent", *own)
    following = winnow(cluster.environment, *command, cwd=folder)
    while len(nodes := list(folder.glob("*.node"))) < 2:  # the step waits on every CPU of both
        assert following.poll() is None, following.communicate()
        time.sleep(0.1)
    cluster.lose(second)
    (folder / "go").touch()
    code, out, err = finish(following)
    assert code == 0, out + err
    assert f"{name} is running already" in err
    assert out.count("145 samples seen = ") == 1
    assert "workspace: " in out
    assert_same(expected, folder)
    # Its own code ran there, from the folder that travelled.
    assert all("_ray_pkg_" in node.read_text() for node in nodes)

    code, out, err = submit(cluster, folder, *own)
    assert code == 0
    assert f"{name} has succeeded already, with the same config and code" in err
    assert out.count("145 samples seen = ") == 1


def test_a_local_command_joins_the_cluster_of_ray_address(cluster, inputs, expected, tmp_path):
    folder = write_job(inputs, tmp_path / "job", steps=[{"step": "exact_dedup"}])
    environment = cluster.environment | {"RAY_ADDRESS": cluster.gcs}
    code, out, err = finish(winnow(environment, "curate", "c.yaml", cwd=folder))
    assert code == 0, err
    assert "145 samples seen = " in out


def test_exit_codes_come_back_and_what_failed_is_resumed(cluster, inputs, tmp_path):
    folder = write_job(inputs, tmp_path / "job", steps=[])
    code, out, err = submit(cluster, folder, "--id", "night", "--set", "pool.path=/nowhere/*.tar")
    assert code == 2, out + err
    assert "winnow: " in out
    assert err.endswith("winnow: night failed, exit code 2; once that is put right, the same command goes on\n")
    code, out, err = submit(cluster, folder, "--id", "night", "--set", "pool.max_reject_fraction=0.0001")
    assert code == 3, out + err
    assert "max_reject_fraction" in out
    assert "submitted as night-2, which goes on where night ended (FAILED)" in err
    code, out, err = submit(cluster, folder, "--id", "night")
    assert code == 0, out + err
    assert "submitted as night-3, which goes on where night-2 ended (FAILED)" in err
    assert re.search(r"^samples +145 +132 +reused$", out, re.MULTILINE)


def test_who_has_no_token_is_told_what_to_set(cluster, inputs, environment, tmp_path):
    folder = write_job(inputs, tmp_path / "job", steps=[])
    stranger = environment | {"HOME": str(tmp_path)}
    for variables in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-token-of-a-length-that-will-do-00"}):
        command = ("submit", "c.yaml", "--address", cluster.address)
        code, out, err = finish(winnow(stranger | variables, *command, cwd=folder))
        assert (code, out) == (2, ""), err
        assert "--address must be that of a cluster that lets this command in" in err
        assert "To be let in, set RAY_AUTH_MODE=token" in err


def test_an_address_where_nothing_listens_is_refused(inputs, environment, tmp_path):
    folder = write_job(inputs, tmp_path / "job", steps=[])
    address = f"http://127.0.0.1:{free_port()}"
    code, _, err = finish(winnow(environment, "submit", "c.yaml", "--address", address, cwd=folder))
    assert code == 2
    assert f"--address must be that of the dashboard of a Ray cluster, got {address}: " in err


@pytest.mark.long
def test_the_demo_trains_its_network_and_curates_on_the_cluster(cluster, environment, tmp_path):
    sizes = ["samples=600", "trusted=600", "test=50", "dfn.samples_seen=6000", "steps.prune.clusters=20"]
    args = argparse.Namespace(folder=tmp_path / "demo", samples=None, overrides=sizes)
    config = configure(args)
    prepare(args.folder, config)
    jobs = {"train": config.filter_training(args.folder), "curate": config.curation}
    for command, job in jobs.items():
        (tmp_path / f"{command}.yaml").write_text(to_yaml(canonical(job)))
        words = ("submit", f"{command}.yaml", "--command", command, "--address", cluster.address)
        code, out, err = finish(winnow(cluster.environment, *words, cwd=tmp_path))
        assert code == 0, out + err
    here = tmp_path / "here"
    elsewhere = ["--set", f"workspace={here}/{WORK}", "--set", f"export.0.path={here}/curated"]
    elsewhere += ["--set", f"export.1.path={here}/curated/subset.npy"]
    code, _, err = finish(winnow(environment, "curate", "curate.yaml", *elsewhere, cwd=tmp_path))
    assert code == 0, err
    theirs, ours = (read_ledger(Store(str(folder))) for folder in (tmp_path / "demo", here / WORK))
    assert [table.to_pylist() for table in theirs] == [table.to_pylist() for table in ours]
    exported = [np.load(folder / "curated/subset.npy") for folder in (tmp_path / "demo", here)]
    np.testing.assert_array_equal(*exported)
