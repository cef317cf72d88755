import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from operators.errors import InputError
from operators.rejects import Damage, Reason
from pipeline import remote, resuming
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool
from pipeline.readers import ShardEnd, read_image, read_shard
from pipeline.s3_file import SteadyFile

JPG = b"\xff\xd8\xffjpeg"


@pytest.fixture(scope="module")
def storage(s3_server):
    return {"endpoint_url": s3_server, "key": "k", "secret": "s"}


@pytest.fixture(scope="module")
def bucket(storage):
    fs = s3fs.S3FileSystem(**storage)
    fs.mkdir("pool")
    for number in range(2):
        fs.pipe(f"pool/web/{number:05d}.tar", make_tar(3))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": [JPG + bytes([i]) for i in range(10)]}), buffer, row_group_size=4)
    fs.pipe("pool/table/0.parquet", buffer.getvalue())
    fs.pipe("pool/images/cat/1.jpg", b"cat")
    fs.pipe("pool/images/dog/2.jpg", b"dog")
    fs.pipe("pool/images/dog/empty.jpg", b"")
    buffer = io.BytesIO()
    pq.write_table(pa.table({"file": ["cat/1.jpg", "s3://pool/images/dog/2.jpg", "dog/empty.jpg", "no.jpg"]}), buffer)
    fs.pipe("pool/images/paths.parquet", buffer.getvalue())
    return fs


def make_tar(num_samples):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(num_samples):
            for name, data in ((f"{number}.jpg", JPG + bytes([number])), (f"{number}.txt", b"a text")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def open_pool(storage, form, path, **settings):
    pool = Pool.model_validate({"format": form, "path": f"s3://pool/{path}", "storage": storage, **settings})
    shards = list_shards(pool)
    check_source(pool.sources[0], shards)
    return pool, shards


@pytest.mark.parametrize("path", ["web/*.tar", "web", "web/"])
def test_tars(storage, bucket, path):
    pool, shards = open_pool(storage, "webdataset", path)
    assert [(shard.name, shard.url) for shard in shards] == [
        ("00000.tar", "s3://pool/web/00000.tar"),
        ("00001.tar", "s3://pool/web/00001.tar"),
    ]
    *samples, end = read_shard(pool, shards[1])
    assert [sample.image[-1] for sample in samples] == [0, 1, 2]
    assert end == ShardEnd(3)
    sample = samples[2]
    image = read_image(pool, shards[1], key="2", row=2, offset=sample.offset, nbytes=len(sample.image))
    assert image == sample.image


def test_the_etag_makes_the_fingerprint(storage, bucket):
    _, (first, second) = open_pool(storage, "webdataset", "web")
    bucket.pipe("pool/web/00001.tar", make_tar(3))
    assert open_pool(storage, "webdataset", "web")[1] == [first, second]
    bucket.pipe("pool/web/00001.tar", make_tar(2) + bytes(1536 * 2))
    changed = open_pool(storage, "webdataset", "web")[1]
    bucket.pipe("pool/web/00001.tar", make_tar(3))
    assert changed[0] == first
    assert changed[1].fingerprint != second.fingerprint


def test_table(storage, bucket):
    pool, (shard,) = open_pool(storage, "parquet", "table/*.parquet")
    *samples, end = read_shard(pool, shard)
    assert [sample.image[-1] for sample in samples] == list(range(10))
    assert end == ShardEnd(10)
    assert read_image(pool, shard, key="", row=7, offset=7, nbytes=len(JPG) + 1) == JPG + bytes([7])


def test_images_and_a_table_of_paths(storage, bucket):
    pool, (shard,) = open_pool(storage, "images", "images")
    *samples, _ = read_shard(pool, shard)
    found = [(sample.key, sample.image, sample.reason) for sample in samples]
    assert found == [
        ("cat/1", b"cat", None),
        ("dog/2", b"dog", None),
        ("dog/empty", b"", Reason.UNDECODABLE_IMAGE),
    ]
    pool, (shard,) = open_pool(storage, "parquet", "images/*.parquet", path_column="file")
    *samples, _ = read_shard(pool, shard)
    assert [(sample.image, sample.reason) for sample in samples] == [
        (b"cat", None),
        (b"dog", None),
        (b"", Reason.UNDECODABLE_IMAGE),
        (b"", Reason.MISSING_IMAGE),
    ]


def test_missing_things(storage, bucket):
    with pytest.raises(InputError, match="pool path must exist, got s3://pool/nothing"):
        open_pool(storage, "webdataset", "nothing")
    with pytest.raises(InputError, match="pool path must hold at least one webdataset file"):
        open_pool(storage, "webdataset", "nothing/*.tar")
    bucket.pipe("pool/gone/0.tar", make_tar(1))
    pool, (shard,) = open_pool(storage, "webdataset", "gone")
    bucket.rm("pool/gone/0.tar")
    assert list(read_shard(pool, shard)) == [ShardEnd(0, Damage.MISSING, "no such file")]


def test_broken_connections_cost_nothing_and_an_outage_is_no_damage(storage, bucket, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0)
    monkeypatch.setattr(resuming, "REMOTE_BLOCK_BYTES", 2048)
    pool, (shard, _) = open_pool(storage, "webdataset", "web")
    expected = list(read_shard(pool, shard))
    fetch, calls = SteadyFile._fetch_range, []

    def break_every_third(self, start, end):
        calls.append(start)
        if len(calls) % 3 == 0:
            raise ConnectionResetError
        return fetch(self, start, end)

    monkeypatch.setattr(SteadyFile, "_fetch_range", break_every_third)
    assert list(read_shard(pool, shard)) == expected
    assert len(calls) > 3

    def break_always(self, start, end):
        raise ConnectionResetError

    monkeypatch.setattr(SteadyFile, "_fetch_range", break_always)
    with pytest.raises(ConnectionResetError):
        list(read_shard(pool, shard))
    pool, (shard,) = (
        pool.model_copy(update={"sources": (pool.sources[0].model_copy(update={"format": "parquet"}),)}),
        [shard],
    )
    with pytest.raises(ConnectionResetError):
        list(read_shard(pool, shard))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_embeddings(storage, bucket):
    x_ND = np.arange(24, dtype=np.float32).reshape(6, 4)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"caption": [f"text {i}" for i in range(6)]}), buffer)
    npz = io.BytesIO()
    np.savez_compressed(npz, l14_img=x_ND)
    clusters = np.array([["p5", "5", "0.5", "0"], ["p1", "1", "0.25", "0"]], dtype="<U32")
    for path, data in {
        "clip/metadata/metadata_0.parquet": buffer.getvalue(),
        "clip/img_emb/img_emb_0.npy": npy(x_ND),
        "datacomp/0.parquet": buffer.getvalue(),
        "datacomp/0.npz": npz.getvalue(),
        "semdedup/embeddings.npy": npy(x_ND),
        "semdedup/sorted_clusters/cluster_0.npy": npy(clusters),
    }.items():
        bucket.pipe(f"pool/{path}", data)
    for form, path, array in (("clip_retrieval", "clip", "img_emb"), ("datacomp", "datacomp/*.parquet", "l14_img")):
        pool, (shard,) = open_pool(storage, form, path)
        *samples, end = read_shard(pool, shard)
        assert (end.rows, end.damage, samples[3].caption) == (6, None, "text 3")
        np.testing.assert_array_equal([sample.vectors[array] for sample in samples], x_ND)
    pool, (shard,) = open_pool(storage, "semdedup", "semdedup")
    *samples, _ = read_shard(pool, shard)
    np.testing.assert_array_equal([sample.vectors["embeddings"] for sample in samples], x_ND[[5, 1]])
    pool, shards = open_pool(storage, "semdedup", "semdedup/embeddings.npy", shard_size=4)
    *samples, _ = read_shard(pool, shards[1])
    np.testing.assert_array_equal([sample.vectors["embeddings"] for sample in samples], x_ND[4:])
