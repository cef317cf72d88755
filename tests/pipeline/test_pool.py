import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from operators.errors import ConfigError, InputError
from pipeline.embed import samples_id
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool, Source


def make_pool(**settings):
    return Pool.model_validate({"format": "webdataset"} | settings)


def write(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def names(pool):
    return [shard.name for shard in list_shards(pool)]


def test_inline_keys_become_the_one_source():
    pool = make_pool(path="a/*.tar", weight=2, chunk_samples=7)
    assert pool.sources == (Source(format="webdataset", path="a/*.tar", weight=2),)
    assert (pool.chunk_samples, pool.max_pixels, pool.max_member_bytes) == (7, 100_000_000, 67_108_864)
    assert Pool.model_validate(pool.model_dump()) == pool


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a", "sources": []}, "sources must not be mixed with the keys of a single source, got also path"),
        ({"sources": []}, "at least one source"),
        ({}, "path"),
        ({"path": "a", "pathh": "b"}, "pathh"),
        ({"sources": [{"format": "images", "path": "a"}], "max_pixel": 1}, "max_pixel"),
        (
            {"format": "tfrecord", "path": "a"},
            "'webdataset', 'parquet', 'images', 'idx', 'clip_retrieval', 'datacomp' or 'semdedup'",
        ),
        ({"path": ""}, "at least 1 character"),
        ({"path": "a", "weight": 0}, "greater than 0"),
        ({"path": "a", "weight": float("inf")}, "finite"),
        ({"path": "a", "name": "../x"}, "name must be made of letters, digits, '.', '-' and '_', got '../x'"),
        ({"path": "a", "text_column": "t"}, "text_column must be used with format parquet or clip_retrieval or"),
        ({"path": "a", "shard_size": 5}, "shard_size must be used with format images or semdedup, got format web"),
        (
            {"format": "parquet", "path": "a", "image_column": "i", "path_column": "p"},
            "image_column and path_column must not both be given, got i and p",
        ),
        ({"path": "ftp://me:hush@host:21/a"}, "must hold no password (it would be recorded), got one for host:21/a"),
        ({"path": "a", "root": "zip://x::http://:hush@host/a"}, "must hold no password"),
        ({"path": "a", "max_reject_fraction": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_settings(settings, message):
    settings = settings if "sources" in settings else {"format": "webdataset"} | settings
    with pytest.raises(ValidationError, match=re.escape(message)):
        Pool.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"format": "webdataset"}, True),
        ({"format": "webdataset", "require_text": False}, False),
        ({"format": "parquet"}, False),
        ({"format": "parquet", "text_column": "t"}, True),
        ({"format": "images"}, False),
    ],
)
def test_when_text_is_needed(settings, needed):
    assert Source(path="a", **settings).needs_text is needed


def test_names_are_relative_to_the_folder_before_the_wildcard(tmp_path):
    for name in ("b/1.tar", "a/2.tar", "a/1.tar", "a/1.json", "a/.hidden.tar"):
        write(tmp_path / name)
    assert names(make_pool(path=f"{tmp_path}/*/*.tar")) == ["a/1.tar", "a/2.tar", "b/1.tar"]
    assert names(make_pool(path=str(tmp_path))) == ["a/1.tar", "a/2.tar", "b/1.tar"]
    assert names(make_pool(path=f"{tmp_path}/a/")) == ["1.tar", "2.tar"]
    assert names(make_pool(path=f"{tmp_path}/a/[1]*.tar", root=str(tmp_path))) == ["a/1.tar"]
    assert names(make_pool(path=f"{tmp_path}/a/1.tar")) == ["1.tar"]


def test_listing_order_does_not_matter(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    for number in range(12):
        write(tmp_path / f"{number}.tar")
    pool = make_pool(path=str(tmp_path))
    before = list_shards(pool)
    find = LocalFileSystem.find
    monkeypatch.setattr(
        LocalFileSystem, "find", lambda self, path, **kw: dict(reversed(find(self, path, **kw).items()))
    )
    assert list_shards(pool) == before


def test_a_path_with_brackets_that_exists_is_no_glob(tmp_path):
    write(tmp_path / "pool[1]" / "a.tar")
    assert names(make_pool(path=f"{tmp_path}/pool[1]")) == ["a.tar"]
    assert names(make_pool(path=f"{tmp_path}/pool[1]/a.tar")) == ["a.tar"]


def test_fingerprint_follows_name_size_and_time(tmp_path):
    path = tmp_path / "a.tar"
    write(path, b"12")
    os.utime(path, (1000, 1000))
    (shard,) = list_shards(make_pool(path=str(tmp_path)))
    assert re.fullmatch("[0-9a-f]{16}", shard.fingerprint)
    assert (shard.size, shard.source, shard.url, shard.files) == (2, 0, str(path), ())
    assert list_shards(make_pool(path=f"{tmp_path}/*.tar")) == [shard]
    fingerprints = {shard.fingerprint}
    os.utime(path, (1000, 1001))
    fingerprints.add(list_shards(make_pool(path=str(tmp_path)))[0].fingerprint)
    write(path, b"123")
    os.utime(path, (1000, 1000))
    fingerprints.add(list_shards(make_pool(path=str(tmp_path)))[0].fingerprint)
    path.rename(tmp_path / "b.tar")
    fingerprints.add(list_shards(make_pool(path=str(tmp_path)))[0].fingerprint)
    assert len(fingerprints) == 4


def test_names_of_several_sources(tmp_path):
    for name in ("a/0.tar", "b/0.tar"):
        write(tmp_path / name)
    sources = [{"format": "webdataset", "path": str(tmp_path / name)} for name in "ab"]
    with pytest.raises(ConfigError, match=r"must be unique in the pool, got '0\.tar' from .*give each source a name"):
        list_shards(Pool.model_validate({"sources": sources}))
    sources[0]["name"] = "web"
    shards = list_shards(Pool.model_validate({"sources": sources}))
    assert [(shard.name, shard.source) for shard in shards] == [("0.tar", 1), ("web/0.tar", 0)]


def test_any_file_system(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/winnow-pool/x/1.tar", b"123")
    (shard,) = list_shards(make_pool(path="memory://winnow-pool/*/*.tar"))
    assert (shard.name, shard.url, shard.size) == ("x/1.tar", "memory:///winnow-pool/x/1.tar", 3)
    fs.rm("/winnow-pool", recursive=True)


@pytest.mark.parametrize("name", ["missing", "missing.tar"])
def test_missing_path(tmp_path, name):
    with pytest.raises(InputError, match=f"pool path must exist, got .*{name}"):
        list_shards(make_pool(path=str(tmp_path / name)))


@pytest.mark.parametrize("name", ["", "/*.tar", "/x/*.tar"])
def test_empty_match(tmp_path, name):
    with pytest.raises(InputError, match="pool path must hold at least one webdataset file, got none at"):
        list_shards(make_pool(path=f"{tmp_path}{name}"))


def test_unknown_protocol_and_wrong_root(tmp_path):
    with pytest.raises(ConfigError, match="protocol that fsspec can open, got nosuch://a/b"):
        list_shards(make_pool(path="nosuch://a/b"))
    write(tmp_path / "a.tar")
    with pytest.raises(ConfigError, match="root must be a folder above path"):
        list_shards(make_pool(path=f"{tmp_path}/a.tar", root=f"{tmp_path}/other"))


def test_image_folders_are_sliced(tmp_path):
    for name in ("b/3.PNG", "a/1.jpg", "a/2.jpg", "a/notes.md", "c.webp", ".thumbs/1.jpg"):
        write(tmp_path / name, name.encode())
    pool = make_pool(format="images", path=str(tmp_path), shard_size=3)
    first, second = list_shards(pool)
    assert (first.name, second.name) == ("images-00000", "images-00001")
    assert first.files == (("a/1.jpg", 7), ("a/2.jpg", 7), ("b/3.PNG", 7))
    assert second.files == (("c.webp", 6),)
    assert (first.url, first.size) == (str(tmp_path), 21)
    assert [shard.files for shard in list_shards(make_pool(format="images", path=f"{tmp_path}/**/*.jpg"))] == [
        (("a/1.jpg", 7), ("a/2.jpg", 7))
    ]
    os.utime(tmp_path / "c.webp", (1, 1))
    changed = list_shards(pool)
    assert [changed[0] == first, changed[1] == second] == [True, False]


def test_names_that_are_not_utf8_become_text(tmp_path):
    data = tmp_path / os.fsdecode(b"caf\xe9.tar")
    write(data)
    (shard,) = list_shards(make_pool(path=str(tmp_path)))
    assert (shard.name, shard.url) == (r"caf\xe9.tar", str(data))


def test_a_moved_idx_pool_is_the_same_pool(tmp_path):
    for name in ("old/t-images-idx3-ubyte", "old/t-labels-idx1-ubyte"):
        write(tmp_path / name)
    pool = make_pool(format="idx", path=str(tmp_path / "old"))
    (old,) = list_shards(pool)
    (tmp_path / "old").rename(tmp_path / "new")
    labels = str(tmp_path / "new/t-labels-idx1-ubyte")
    moved_pool = make_pool(format="idx", path=str(tmp_path / "new"), labels_path=labels)
    (moved,) = list_shards(moved_pool)
    assert moved.files == ((labels, 1),) != old.files
    assert samples_id(moved_pool, moved) == samples_id(pool, old)


def test_idx_labels_are_found_beside_the_images(tmp_path):
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "train-images-idx3-ubyte", "readme.txt"):
        write(tmp_path / name)
    found = list_shards(make_pool(format="idx", path=str(tmp_path)))
    assert [(shard.name, shard.files) for shard in found] == [
        ("t10k-images-idx3-ubyte.gz", ((str(tmp_path / "t10k-labels-idx1-ubyte.gz"), 1),)),
        ("train-images-idx3-ubyte", ()),
    ]
    with pytest.raises(InputError, match="labels_path must be a file, got nowhere"):
        list_shards(make_pool(format="idx", path=str(tmp_path), labels_path="nowhere"))


def check_table(tmp_path, table, **settings):
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    pool = make_pool(format="parquet", path=str(tmp_path), **settings)
    check_source(pool.sources[0], list_shards(pool))


def test_parquet_schema_is_checked_before_any_work(tmp_path):
    images = {"jpg": [b"x"], "caption": ["a"]}
    check_table(tmp_path, images)
    check_table(tmp_path, {"image": [{"bytes": b"x", "path": "a"}]})
    check_table(tmp_path, {"file": ["a"]}, path_column="file")
    with pytest.raises(InputError, match="metadata table without image bytes: download it first with img2dataset"):
        check_table(tmp_path, {"url": ["a"], "text": ["a"]})
    with pytest.raises(InputError, match="must have a column of image bytes, got a, b"):
        check_table(tmp_path, {"a": ["a"], "b": [1]})
    with pytest.raises(ConfigError, match=r"\(jpg, caption\), got 'captoin'; did you mean 'caption'\?"):
        check_table(tmp_path, images, text_column="captoin")
    with pytest.raises(ConfigError, match=r"image_column must be a column of a fitting type .* got 'caption' of type"):
        check_table(tmp_path, images, image_column="caption")


def test_a_damaged_first_shard_proves_nothing(tmp_path):
    (tmp_path / "-1.parquet").write_bytes(b"PAR1 cut")
    check_table(tmp_path, {"jpg": [b"x"]})
    with pytest.raises(InputError, match="download it first"):
        check_table(tmp_path, {"url": ["a"]})
