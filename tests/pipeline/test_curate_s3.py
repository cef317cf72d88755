"""A curation with everything on S3: the same ledger as on a disk, nothing done twice, no credentials left behind."""

import io
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import s3fs

from operators.errors import WorkspaceError
from pipeline.clean.sweep import delete, find
from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.engine import engine
from pipeline.ledger import ledger_sha256
from pipeline.progress import Progress
from pipeline.quarantine import quarantine
from pipeline.storage import Store
from pipeline.verify.workspace import verify
from tests.faults import s3_proxy
from tests.faults.s3_proxy import FaultProxy, Faults
from tests.small_pools import jpeg, sound, tar_bytes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors"),  # few shards for several encoders
]
LEFTOVERS = ("attempt", "probe", "pieces", "found")

SECRET = "a-secret-of-the-test"
SHARDS = {
    "a/0.tar": [*sound(20, {"uid": "0" * 31 + "1"}, {"uid": "nonsense"}), {"jpg": b"no image", "txt": b"a text"}],
    "a/1.tar": [*sound(12, {"uid": "0" * 31 + "1"}), {"jpg": jpeg(200)}],
}
DENIED = b"https://nobody.example/1.jpg\n"
"""A list that says nothing of how it is opened: as the workspace is."""
STEPS = [
    {"step": "exact_dedup"},
    {"step": "filter", "column": "bytes", "keep_fraction": 0.9, "best": "lowest"},
    {"step": "prune", "method": "dbp", "model": "raw", "clusters": 3, "keep": 9, "neighbours": 2},
]


@pytest.fixture(scope="module")
def storage(s3_server):
    return {"endpoint_url": s3_server, "key": "a-key-of-the-test", "secret": SECRET}


@pytest.fixture(scope="module")
def bucket(storage):
    """A client of its own, so that what the run's client remembers of listings is not what the tests see."""
    fs = s3fs.S3FileSystem(**storage, use_listings_cache=False, skip_instance_cache=True)
    fs.mkdir("bucket")
    for name, samples in SHARDS.items():
        fs.pipe(f"bucket/pool/{name}", tar_bytes(samples))
    fs.pipe("bucket/pool-lists/urls.txt", DENIED)
    return fs


def config(pool: str, workspace: str, out: str, storage: dict) -> Curation:
    exports = [("webdataset", f"{out}/tars"), ("parquet", f"{out}/tables"), ("uids", f"{out}/subset.npy")]
    exports += [("keys", f"{out}/keys.parquet")]
    return Curation.model_validate(
        {
            "pool": {
                "format": "webdataset",
                "path": f"{pool}/*/*.tar",
                "storage": storage,
                "max_reject_fraction": 0.2,
                "chunk_samples": 4,
            },
            "workspace": workspace,
            "storage": storage,
            "models": {"raw": {"library": "pixels", "size": 4}},
            "steps": [{"step": "deny", "urls": f"{pool}-lists/urls.txt"}, *STEPS],
            "export": [{"format": name, "path": path, "storage": storage} for name, path in exports],
        }
    )


def run(settings: Curation):
    return curate(settings, check(settings), workers=3, progress=Progress())


@pytest.fixture(scope="module")
def remote(storage, bucket, ray_here):
    settings = config("s3://bucket/pool", "s3://bucket/curation", "s3://bucket/out", storage)
    return settings, run(settings)


def content(bucket, folder: str) -> dict[str, bytes]:
    return {path: bucket.cat_file(path) for path in bucket.find(folder)}


def test_the_ledger_is_that_of_a_run_on_a_disk(remote, tmp_path):
    settings, summary = remote
    for name, samples in SHARDS.items():
        (tmp_path / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pool" / name).write_bytes(tar_bytes(samples))
    (tmp_path / "pool-lists").mkdir()
    (tmp_path / "pool-lists/urls.txt").write_bytes(DENIED)
    local = config(str(tmp_path / "pool"), str(tmp_path / "work"), str(tmp_path / "out"), {})
    on_disk = run(local)
    assert ledger_sha256(settings.store) == ledger_sha256(local.store)
    assert (summary.samples_seen, summary.kept) == (on_disk.samples_seen, on_disk.kept) == (34, 9)
    assert summary.rejected == {"duplicate_uid": 1, "missing_text": 1, "undecodable_image": 1}
    assert summary.uids == {"supplied": 2, "invalid": 1}


def test_exports_are_those_of_a_run_on_a_disk(remote, bucket, tmp_path):
    _, summary = remote
    assert [export.samples for export in summary.exports] == [9, 9, 9, 9]
    subset = np.load(io.BytesIO(bucket.cat_file("bucket/out/subset.npy")))
    assert len(subset) == 9
    keys = pq.read_table(io.BytesIO(bucket.cat_file("bucket/out/keys.parquet")))
    assert keys.num_rows == 9
    assert any(path.endswith(".tar") for path in bucket.find("bucket/out/tars"))


def changes(bucket):
    """When each object was last changed, but for what says which run was the latest."""
    found = bucket.find("bucket", detail=True).items()
    return {path: info["LastModified"] for path, info in found if not path.endswith("/status.json")}


def test_a_second_run_reuses_everything_and_changes_no_object(remote, bucket):
    settings, _ = remote
    before = changes(bucket)
    summary = run(settings)
    assert summary.reused
    assert changes(bucket) == before


def test_on_a_store_that_misbehaves_the_ledger_is_the_same(remote, bucket, storage, monkeypatch):
    monkeypatch.setattr(s3_proxy, "TRICKLE_BYTES_PER_SECOND", 8192)  # or it would take minutes
    settings, expected = remote
    faults = Faults(slow_down=0.03, internal=0.03, denied=0.03, reset=0.05, trickle=0.04, lost_reply=0.1)
    with FaultProxy(storage["endpoint_url"], replace(faults, stale_list=0.3)) as proxy:
        # Without botocore's own pauses, which begin at a second.
        options = storage | {"endpoint_url": proxy.url, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
        disturbed = config("s3://bucket/pool", "s3://bucket/disturbed", "s3://bucket/disturbed-out", options)
        summary = run(disturbed)
        assert set(proxy.injected) == {field.name for field in fields(Faults)} - {"seed", "only"}, proxy.injected
    assert ledger_sha256(Store("s3://bucket/disturbed", storage)) == ledger_sha256(settings.store)
    assert (summary.kept, summary.rejected, summary.uids) == (expected.kept, expected.rejected, expected.uids)
    for name in ("subset.npy", *sorted(path.partition("/out/")[2] for path in bucket.find("bucket/out/tars"))):
        assert bucket.cat_file(f"bucket/disturbed-out/{name}") == bucket.cat_file(f"bucket/out/{name}"), name


def test_no_attempt_leaves_anything_behind(remote, bucket):
    assert not [path for path in bucket.find("bucket") if any(word in path for word in LEFTOVERS)]


def test_credentials_are_in_no_object(remote, bucket, storage):
    for path, data in content(bucket, "bucket").items():
        text = data + (repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode() if path.endswith(".parquet") else b"")
        for secret in (storage["key"], storage["secret"]):
            assert secret.encode() not in text, path


def test_credentials_are_in_no_log_of_ray(remote, storage):
    logs = [path for path in Path(session_logs()).rglob("*") if path.is_file()]
    assert logs
    for path in logs:
        for secret in (storage["key"], storage["secret"]):
            assert secret.encode() not in path.read_bytes(), path


def session_logs() -> str:
    return ray._private.worker._global_node.get_logs_dir_path()


def test_the_record_keeps_the_endpoint(remote, bucket, storage):
    record = json.loads(bucket.cat_file("bucket/curation/run.json"))
    assert record["config"]["storage"] == {"endpoint_url": storage["endpoint_url"]}


def test_damage_is_found_and_moved_away_and_old_leftovers_are_cleaned(remote, bucket, tmp_path):
    settings, _ = remote
    store = settings.store
    before = ledger_sha256(store)
    assert verify(store, workers=3, progress=Progress()).damage == []
    parts = [name for name in store.find("raw.image") if name.endswith(".parquet")]
    bucket.pipe(f"bucket/curation/{parts[0]}", b"x" * 100)
    bucket.rm(f"bucket/curation/{parts[1]}")
    found = verify(store, workers=3, progress=Progress())
    assert [damage.path for damage in found.damage] == parts[:2]
    for damage in found.damage:
        quarantine(store, damage.path)
    assert f"damaged/{parts[0]}" in store.find("damaged")
    assert f"{parts[1].rpartition('/')[0]}/part.json" not in store.find("raw.image")
    with engine(settings.resources):
        run(settings)
    assert verify(store, workers=3, progress=Progress()).damage == []
    assert ledger_sha256(store) == before
    assert find(store, unused=False) == []  # all of it younger than a day
    delete(store, find(store, unused=False, hours=0.0))
    assert store.find("damaged") == {}
    assert verify(store, workers=3, progress=Progress()).damage == []


def test_wrong_bucket(storage, ray_here):
    settings = config("s3://bucket/pool", "s3://no-such-bucket/curation", "s3://bucket/out", storage)
    with pytest.raises(
        WorkspaceError, match="s3://no-such-bucket/curation must be a folder that can be written to, got: "
    ):
        check(settings)


def test_a_listing_never_hides_what_another_process_wrote(storage, bucket):
    store = Store("s3://bucket/shared", storage)
    bucket.pipe("bucket/shared/folder/1", b"one")
    assert store.find("folder") == {"folder/1": 3}
    bucket.pipe("bucket/shared/folder/2", b"second")
    assert store.exists("folder/2")
    with store.open("folder/2") as file:
        assert file.read() == b"second"
    assert store.publish("folder/2", b"second")
    assert not store.publish("folder/2", b"other")
    bucket.pipe("bucket/shared/folder/3", b"third")
    store.remove("folder")
    assert bucket.find("bucket/shared") == []
