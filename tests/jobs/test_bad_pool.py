"""What stops `winnow curate` once the pool is read: one clear line, exit code 2 or 3, nothing lost."""

import json
import os
import subprocess

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.small_pools import sound, write_tar

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_here"),
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors"),  # one shard for several encoders
]

PRUNE = {"step": "prune", "method": "dbp", "model": "raw", "keep_fraction": 0.5}


def test_a_pool_whose_every_sample_is_rejected(curate, tmp_path):
    write_tar(tmp_path / "bad.tar", [{"jpg": b"", "txt": b"a"}] * 3)
    code, line = curate(pool={"format": "webdataset", "path": "bad.tar"}, steps=[{"step": "exact_dedup"}])
    assert (code, line) == (
        3,
        (
            "winnow: at most 5.00% of the 3 samples may be rejected (pool.max_reject_fraction), "
            "got 3 (100.00%): undecodable_image 3; worst shards: bad.tar 3 of 3"
        ),
    )
    assert not (tmp_path / "w" / "exact_dedup").exists()


def test_a_pool_whose_every_sample_may_be_rejected(curate, tmp_path):
    write_tar(tmp_path / "bad.tar", [{"jpg": b"", "txt": b"a"}] * 3)
    steps = [
        {"step": "rules", "min_side": 1},
        {"step": "exact_dedup"},
        {"step": "filter", "column": "sim", "min": 0.1},
        {"step": "filter", "name": "largest", "column": "width", "keep_fraction": 0.5},
        {"step": "prune", "method": "random", "keep_fraction": 0.5},
    ]
    pool = {"format": "webdataset", "path": "bad.tar", "max_reject_fraction": 1}
    code, line = curate(pool=pool, steps=steps, export=[{"format": "uids", "path": "out/subset.npy"}])
    assert (code, line) == (0, "")
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert (summary["samples_seen"], summary["kept"], summary["rejected"]) == (3, 0, {"undecodable_image": 3})
    assert len(np.load(tmp_path / "out" / "subset.npy")) == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, ""),
        (b"", " (empty.tar unreadable: "),
        (b"no tar at all" * 99, " (empty.tar unreadable: bad header at"),
    ],
)
def test_a_pool_without_samples(curate, tmp_path, content, why):
    write_tar(tmp_path / "empty.tar", [])
    if content is not None:
        (tmp_path / "empty.tar").write_bytes(content)
    code, line = curate(pool={"format": "webdataset", "path": "empty.tar"})
    assert code == 2
    assert line.startswith(f"winnow: the pool must have at least one sample, got none in 1 shards{why}")


def test_more_damaged_shards_than_allowed(curate, tmp_path):
    for name in ("a.tar", "b.tar", "c.tar"):
        (tmp_path / name).write_bytes(b"no tar at all" * 99)
    code, line = curate(pool={"format": "webdataset", "path": "*.tar"}, steps=[{"step": "exact_dedup"}])
    assert code == 3
    assert line.startswith(
        "winnow: at most 1.00% of the 4 shards may be damaged (pool.max_damaged_fraction), got 3: "
        "a.tar unreadable: bad header at byte 0; b.tar unreadable: "
    )


def test_more_clusters_than_samples(curate):
    code, line = curate(models={"raw": {"library": "pixels", "size": 4}}, steps=[PRUNE | {"clusters": 9}])
    assert (code, line) == (2, "winnow: prune.clusters must be at most the 8 rows that enter the step, got 9")


def test_weights_of_another_model(curate, tmp_path):
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "other.safetensors")
    model = {"library": "timm", "name": "resnet10t", "weights": str(tmp_path / "other.safetensors")}
    code, line = curate(models={"raw": model}, steps=[PRUNE | {"clusters": 2}])
    assert code == 2
    assert line.startswith("winnow: weights must be those of resnet10t, got ")
    assert "\n" not in line


@pytest.mark.parametrize("step", [{"step": "filter", "column": "width"}, {"step": "prune", "method": "random"}])
def test_a_target_larger_than_the_pool(curate, step):
    code, line = curate(steps=[step | {"keep": 9}])
    rule = f"{step['step']}.keep must be at most the 8 rows that enter the step, got 9"
    assert (code, line) == (2, f"winnow: {rule}")


def test_a_filter_by_values_that_are_no_usual_numbers(curate, tmp_path):
    write_tar(tmp_path / "pool.tar", sound(4, {"sim": 0.5}, {"sim": float("nan")}, {"sim": 10**400}, {"sim": "high"}))
    assert curate(steps=[{"step": "filter", "column": "sim", "keep": 2}]) == (0, "")
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert summary["dropped"] == {"filter": {"no_value": 2}}


def test_a_filter_by_a_column_that_no_sample_has(curate):
    code, line = curate(steps=[{"step": "filter", "column": "simm", "keep_fraction": 0.5}])
    value = "a number in the metadata field 'simm'"
    rule = f"filter must keep at most the rows with {value}, got 4, which is more than there are"
    assert (code, line) == (2, f"winnow: {rule}")
    for kept in ({"min": 0.5}, {"keep": 0}) * 2:  # what was published of it says so again
        code, line = curate(steps=[{"step": "filter", "column": "simm"} | kept])
        assert (code, line) == (
            2,
            f"winnow: filter must find {value} in some row, got none in 8 rows",
        )


def test_metadata_of_an_odd_type_is_on_no_deny_list(curate, tmp_path):
    write_tar(tmp_path / "pool.tar", sound(4, {"url": ["x"]}, {"url": 3}, {"sha256": {}}, {"url": "http://a"}))
    (tmp_path / "urls.txt").write_text("# withdrawn\nhttp://a\n")
    assert curate(steps=[{"step": "deny", "urls": "urls.txt"}]) == (0, "")
    (tmp_path / "urls.txt").write_text("# none\n")
    before = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert curate(steps=[{"step": "deny", "urls": "urls.txt"}]) == (0, "")
    after = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert (before["dropped"], after["dropped"]) == ({"deny": {"denied_url": 1}}, {"deny": {}})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "raises",
            "must not raise, got ZeroDivisionError: integer division or modulo by zero (own_functions.py:24)",
        ),
        ("gives_one_value", "must return one value for each of 8 rows, got shape (1,)"),
        ("gives_nothing", "must return one value for each of 8 rows, got shape ()"),
        ("gives_numbers", "must return booleans to give a verdict, got int64"),
    ],
)
def test_a_python_step_that_fails_in_a_worker(curate, name, message):
    function = f"tests.jobs.own_functions:{name}"
    assert curate(steps=[{"step": "python", "function": function}]) == (2, f"winnow: {function} {message}")


def test_a_shard_that_was_read_and_is_then_unreadable(curate, tmp_path):
    tar, models = tmp_path / "pool.tar", {"raw": {"library": "pixels", "size": 4}}
    assert curate(steps=[{"step": "prune", "method": "random", "keep": 9}])[0] == 2  # after the samples were read
    sound_bytes, stat = tar.read_bytes(), tar.stat()

    def put(content):
        tar.write_bytes(content)
        os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    steps = [{"step": "rules", "min_side": 1}, PRUNE | {"clusters": 2}]
    put(b"x" * len(sound_bytes))
    code, line = curate(steps=steps, models=models)
    rule = "shard pool.tar must still hold the 8 rows that were read from it, got 0: run again once it is back"
    assert (code, line) == (2, f"winnow: {rule}")
    put(sound_bytes)
    assert curate(steps=steps, models=models) == (0, "")
    assert json.loads((tmp_path / "w" / "summary.json").read_text())["kept"] == 4


def test_a_full_disk_costs_nothing_but_time(curate, tmp_path):
    disk = tmp_path / "w"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        code, line = curate(steps=[{"step": "exact_dedup"}])
        assert (code, line) == (
            2,
            f"winnow: {disk} must be a folder that can be written to, got: No space left on device",
        )
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert curate(steps=[{"step": "exact_dedup"}]) == (0, "")
        assert json.loads((disk / "summary.json").read_text())["kept"] == 8
    finally:
        subprocess.run(["umount", disk], check=True)
