"""An S3 that throttles, fails, denies, resets, trickles and loses replies: nothing is lost, doubled or mixed."""

import asyncio
import io
import itertools
import os

import pytest
import s3fs

from operators.errors import InputChanged
from pipeline import remote, resuming, s3_file, storage
from pipeline.listing import list_shards
from pipeline.pool import Pool
from pipeline.readers import ShardEnd, read_shard
from pipeline.storage import Store
from tests.faults.s3_proxy import FaultProxy, Faults
from tests.small_pools import sound, tar_bytes

pytestmark = pytest.mark.faults

KEY = {"key": "a-key-of-the-test", "secret": "a-secret-of-the-test"}
SAMPLES = sound(40)
MIXED = Faults(slow_down=0.1, internal=0.1, denied=0.1, reset=0.15, lost_reply=0.2)


@pytest.fixture(scope="module")
def bucket(s3_server):
    fs = s3fs.S3FileSystem(endpoint_url=s3_server, **KEY, use_listings_cache=False, skip_instance_cache=True)
    fs.mkdir("faulty")
    for number in range(3):
        fs.pipe(f"faulty/pool/{number}.tar", tar_bytes(SAMPLES))
    return fs


@pytest.fixture
def proxy(s3_server, bucket, monkeypatch):
    """Pauses are short here."""
    shorten_pauses(monkeypatch)
    with FaultProxy(s3_server) as proxy:
        yield proxy


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all three layers; how long they are is botocore's business and `test_remote`'s."""
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.001)
    sleep = asyncio.sleep
    monkeypatch.setattr(s3fs.core.asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.001)))


def options(proxy: FaultProxy) -> dict:
    return {"endpoint_url": proxy.url, **KEY}


def open_pool(proxy: FaultProxy) -> tuple[Pool, list]:
    path = {"format": "webdataset", "path": "s3://faulty/pool/*.tar", "storage": options(proxy)}
    pool = Pool.model_validate(path)
    return pool, list_shards(pool)


@pytest.mark.parametrize("seed", range(3))
def test_reading(proxy, monkeypatch, seed):
    monkeypatch.setattr(resuming, "REMOTE_BLOCK_BYTES", 4096)
    pool, shards = open_pool(proxy)
    expected = [list(read_shard(pool, shard)) for shard in shards]
    assert [rows[-1] for rows in expected] == [ShardEnd(40)] * 3
    proxy.faults = Faults(**{**vars(MIXED), "seed": seed})
    again, shards_again = open_pool(proxy)
    assert shards_again == shards
    assert [list(read_shard(again, shard)) for shard in shards] == expected
    assert {"slow_down", "internal", "reset"} <= proxy.injected.keys(), proxy.injected


def test_a_range_goes_on_where_it_stopped(proxy):
    content = os.urandom(300_000)
    Store("s3://faulty", options(proxy)).replace("steady/one", content)
    before = proxy.requests["GET"]
    proxy.faults = Faults(reset=1.0)
    asked = []
    append = s3_file.SteadyFile._append

    async def record(self, data, start, end):
        asked.append((start, end))
        await append(self, data, start, end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_file.SteadyFile, "_append", record)
        patch.setattr(s3_file, "_PIECE_BYTES", 1000)
        with Store("s3://faulty", options(proxy)).open("steady/one") as file:
            file.seek(100_000)
            assert file.read(180_000) == content[100_000:280_000]
    assert proxy.requests["GET"] - before == len(asked) > 3
    starts = [start for start, _ in asked]
    assert starts == sorted(starts)
    assert starts[0] == 100_000
    assert starts[1] > 150_000, "half of what was asked for had come"


def test_a_connection_that_trickles_is_given_up(proxy, monkeypatch):
    monkeypatch.setattr(s3_file, "SLOW_SECONDS", 0.4)
    monkeypatch.setattr(s3_file, "SLOW_BYTES_PER_SECOND", 1 << 30)
    content = os.urandom(20_000)
    store = Store("s3://faulty", options(proxy))
    store.replace("steady/two", content)
    possible = (Faults(trickle=0.6, seed=seed) for seed in range(99))
    proxy.faults = next(faults for faults in possible if faults.choose("GET", "/faulty/steady/two", 0))
    with store.open("steady/two") as file:
        assert file.read() == content
    assert proxy.injected["trickle"] >= 1


def test_an_object_that_changes_while_it_is_read_is_an_error_and_no_mixture(proxy, bucket, monkeypatch):
    monkeypatch.setattr(resuming, "REMOTE_BLOCK_BYTES", 2048)
    bucket.pipe("faulty/changing/0.tar", tar_bytes(SAMPLES))
    pool = Pool.model_validate(
        {"format": "webdataset", "path": "s3://faulty/changing/*.tar", "storage": options(proxy)}
    )
    (shard,) = list_shards(pool)
    rows = read_shard(pool, shard)
    next(rows)
    bucket.pipe("faulty/changing/0.tar", tar_bytes(SAMPLES[::-1]))
    with pytest.raises(InputChanged, match=r"s3://faulty/changing/0.tar must stay as it is while it is read"):
        list(rows)
    (shard,) = list_shards(pool)
    rows = read_shard(pool, shard)
    next(rows)
    bucket.pipe("faulty/changing/0.tar", tar_bytes(SAMPLES))
    remote.open_location("s3://faulty", options(proxy))[0].invalidate_cache()  # as in a worker, which lists nothing
    monkeypatch.setattr(s3_file.SteadyFile, "_append", broken)
    with pytest.raises(InputChanged):
        list(rows)


def test_a_file_of_a_workspace_that_is_replaced_while_it_is_read_is_read_anew(proxy, bucket, monkeypatch):
    """As the sign of life of another run, which is read while that run writes the next."""
    store = Store("s3://faulty", options(proxy))
    store.replace("replaced/beat", b"1")
    newer = iter([b"2", b"3"])
    append = s3_file.SteadyFile._append

    async def replace_and_append(self, data, start, end):
        if content := next(newer, None):
            await asyncio.to_thread(bucket.pipe, "faulty/replaced/beat", content)
        await append(self, data, start, end)

    monkeypatch.setattr(s3_file.SteadyFile, "_append", replace_and_append)
    assert store.read("replaced/beat") == b"3"
    newer = itertools.cycle([b"4", b"5"])
    with pytest.raises(InputChanged, match=r"s3://faulty/replaced/beat must stay as it is while it is read"):
        store.read("replaced/beat")


async def broken(self, data, start, end):
    """Makes each reading open the object anew."""
    raise OSError("broken")


@pytest.mark.parametrize("seed", range(3))
def test_publishing(proxy, seed):
    proxy.faults = Faults(**{**vars(MIXED), "seed": seed})
    store = Store(f"s3://faulty/work-{seed}", options(proxy))
    for number in range(12):
        assert store.publish(f"parts/{number}", b"mine %d" % number), "its own success is no conflict"
        assert not store.publish(f"parts/{number}", b"another")
        store.replace("pointer", b"%d" % number)
    assert sorted(store.find("parts")) == sorted(f"parts/{number}" for number in range(12))
    assert {store.read(f"parts/{number}") for number in range(12)} == {b"mine %d" % number for number in range(12)}
    assert store.read("pointer") == b"11"
    with store.locked():
        pass
    store.remove("parts")
    assert store.find("parts") == {}
    assert {"slow_down", "internal", "denied", "lost_reply"} <= proxy.injected.keys(), proxy.injected


def test_large_files_go_up_in_parts_and_are_compared_in_blocks(proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_UPLOAD_PART_BYTES", 5 << 20)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(12 << 20))
    store = Store("s3://faulty/large", options(proxy))
    proxy.faults = Faults(lost_reply=1.0, only=r"large/one\?uploadId=")
    assert store.publish_file(path, "one"), "the reply to its completion was lost"
    proxy.faults = Faults()
    assert store.publish_file(path, "one")
    assert store.read("one") == path.read_bytes()
    with path.open("r+b") as file:
        file.seek(11 << 20)
        file.write(b"other")
    assert not store.publish_file(path, "one")
    assert not store.publish_file(tmp_path / "large", "one")
    assert proxy.injected["lost_reply"] >= 1


def test_a_store_that_is_down_for_good_says_so(proxy):
    proxy.faults = Faults(slow_down=1.0)
    fast = options(proxy) | {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        with pytest.raises(OSError, match="Service Unavailable"):
            Store("s3://faulty/down", fast).read("x")


def test_the_proxy_repeats_itself():
    faults = Faults(seed=3, slow_down=0.2, reset=0.2, stale_list=0.3, lost_reply=0.5, denied=0.1)
    requests = [
        (method, f"/b/{i}{query}") for i in range(50) for method in ("GET", "PUT") for query in ("", "?list-type=2")
    ]
    drawn = [faults.choose(method, target, times) for method, target in requests for times in range(3)]
    assert drawn == [faults.choose(method, target, times) for method, target in requests for times in range(3)]
    assert set(drawn) == {None, "slow_down", "reset", "stale_list", "lost_reply", "denied"}
    assert {fault for (method, _), fault in zip(requests, drawn[::3], strict=True) if method == "GET"} == {
        *(None, "slow_down", "reset", "denied")
    }


@pytest.mark.long
def test_a_listing_asks_once_for_each_thousand_names(proxy, bucket):
    bucket.pipe({f"faulty/many/{number // 1000:02d}/{number:05d}.tar": b"x" for number in range(6_000)})
    before = sum(proxy.requests.values())
    pool = Pool.model_validate({"format": "webdataset", "path": "s3://faulty/many/*/*.tar", "storage": options(proxy)})
    assert len(list_shards(pool)) == 6_000
    assert sum(proxy.requests.values()) - before < 6 + 10
    folder = Pool.model_validate({"format": "webdataset", "path": "s3://faulty/many", "storage": options(proxy)})
    before = sum(proxy.requests.values())
    assert len(list_shards(folder)) == 6_000
    assert sum(proxy.requests.values()) - before < 6 + 10


def test_empty(proxy):
    store = Store("s3://faulty/empty", options(proxy))
    assert store.publish("nothing", b"")
    assert store.read("nothing") == b""
    assert io.BytesIO(store.open("nothing").read()).read() == b""
    with pytest.raises(FileNotFoundError):
        store.read("missing")
