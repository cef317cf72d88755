"""`winnow export` on a workspace that a curation has left."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.main import main
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.engine import Resources, engine
from pipeline.generate import generate_pool
from pipeline.kept import load_kept
from pipeline.pool_plan import PoolSettings

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Of a curation of 60 samples, some of them exact copies; Ray stays up for the tests."""
    folder = tmp_path_factory.mktemp("export-job")
    generate_pool(folder, PoolSettings(samples=60, samples_per_shard=20, broken=False, exact_fraction=0.2))
    resources = Resources(workers=2, object_store_bytes=300_000_000)
    config = Curation.model_validate(
        {
            "pool": {"format": "webdataset", "path": str(folder / "pool/*.tar")},
            "workspace": str(folder / "work"),
            "steps": [{"step": "exact_dedup"}],
            "report": False,
            "resources": resources,
        }
    )
    with engine(resources):
        assert run_curation(config).kept == 48
        yield str(folder / "work")


def test_all_formats_agree(workspace, tmp_path, capsys):
    def export(form, name, *options):
        assert main(["export", workspace, "--format", form, "--to", str(tmp_path / name), *options]) == 0
        return capsys.readouterr().out.splitlines()[-1].split()

    words = export("webdataset", "tars", "--max-samples-per-shard", "20")
    assert words[:4] == ["webdataset", str(tmp_path / "tars"), "48", "11"]
    export("parquet", "tables")
    export("keys", "keys.parquet")
    assert export("uids", "tars/subset.npy")[-1] != "reused"
    assert export("uids", "tars/subset.npy")[-1] == "reused"

    rows = pq.read_table(tmp_path / "tables").to_pylist()
    subset = np.load(tmp_path / "tars/subset.npy")
    assert [f"{high:016x}{low:016x}" for high, low in subset.tolist()] == sorted(row["uid"] for row in rows)
    kept = load_kept(str(tmp_path / "keys.parquet"))
    assert len(kept) == 48
    assert all(kept(row["shard"], row["key"]) for row in rows)
    counts = [json.loads(path.read_text())["successes"] for path in sorted((tmp_path / "tars").glob("*_stats.json"))]
    assert counts == [20, 20, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "uids", "--max-shard-bytes", "5"], "--max-shard-bytes must be used with --format webdataset"),
        (["--format", "webdataset", "--max-samples-per-shard", "0"], "--max-samples-per-shard must be greater than"),
        (["--format", "semdedup", "--model", "raw"], "--step must be given with --format semdedup"),
        (["--format", "keys", "--model", "raw"], "--model must be used with --format clip_retrieval or semdedup"),
        (["--format", "clip_retrieval", "--model", "raw"], "one whose images the run has embedded (none), got 'raw'"),
        (["--format", "keys", "--to-storage", "anon"], "--to-storage must be KEY=VALUE, got 'anon'"),
        (["--format", "keys", "--storage", "anon"], "--storage must be KEY=VALUE, got 'anon'"),
    ],
)
def test_wrong_options(workspace, tmp_path, capsys, options, message):
    assert main(["export", workspace, "--to", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_workspace(workspace, tmp_path, capsys):
    assert main(["export", str(tmp_path), "--format", "keys", "--to", str(tmp_path / "keys.parquet")]) == 2
    assert "must be the workspace of a finished run, got no run.json in it" in capsys.readouterr().err
