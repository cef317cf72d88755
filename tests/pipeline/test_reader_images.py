import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import InputError
from operators.rejects import Reason
from pipeline.listing import list_shards
from pipeline.pool import Pool
from pipeline.readers import ShardEnd, read_image, read_shard
from pipeline.readers.images import make_keys


@pytest.fixture
def folder(tmp_path):
    for name, data in {
        "cat/1.jpg": b"cat one",
        "cat/2.PNG": b"",
        "dog/deep/1.jpg": b"x" * 101,
        "dog/odd [1]*.jpg": b"brackets",
        "top.gif": b"top",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path


def open_pool(folder, **settings):
    pool = Pool.model_validate({"format": "images", "path": str(folder), "max_member_bytes": 100} | settings)
    return pool, list_shards(pool)


def test_every_file_is_a_row(folder):
    pool, (shard,) = open_pool(folder)
    *samples, end = read_shard(pool, shard, members=True)
    assert end == ShardEnd(5)
    assert [(s.row, s.key, s.image, s.ext, s.metadata, s.reason) for s in samples] == [
        (0, "cat/1", b"cat one", "jpg", {"label": "cat"}, None),
        (1, "cat/2", b"", "", {"label": "cat"}, Reason.UNDECODABLE_IMAGE),
        (2, "dog/deep/1", b"", "", {"label": "deep"}, Reason.MEMBER_TOO_LARGE),
        (3, "dog/odd [1]*", b"brackets", "jpg", {"label": "dog"}, None),
        (4, "top", b"top", "gif", None, None),
    ]
    assert samples[0].members == {"jpg": b"cat one"}
    assert list(read_shard(pool, shard, rows=[1, 3, 9], members=True)) == [samples[1], samples[3], ShardEnd(4)]


def test_slices_cover_the_folder(folder):
    pool, shards = open_pool(folder, shard_size=2)
    counts = [list(read_shard(pool, shard))[-1].rows for shard in shards]
    assert counts == [2, 2, 1]


def test_a_file_that_vanished_is_one_reject(folder):
    pool, (shard,) = open_pool(folder)
    (folder / "cat/1.jpg").unlink()
    first, *_, end = read_shard(pool, shard)
    assert (first.reason, end.damage) == (Reason.MISSING_IMAGE, None)
    with pytest.raises(InputError, match=r"image 'cat/1' of shard images-00000 must still have 7 bytes, got none"):
        read_image(pool, shard, key="cat/1", row=0, offset=0, nbytes=7)


def test_one_image(folder):
    pool, (shard,) = open_pool(folder)
    assert read_image(pool, shard, key="top", row=4, offset=0, nbytes=3) == b"top"
    with pytest.raises(InputError, match="must still have 4 bytes, got 3"):
        read_image(pool, shard, key="top", row=4, offset=0, nbytes=4)


def test_names_that_are_not_utf8_become_text(tmp_path):
    path = tmp_path / os.fsdecode(b"d\xe9j\xe0/caf\xe9.png")
    path.parent.mkdir()
    path.write_bytes(b"image")
    pool, (shard,) = open_pool(tmp_path)
    sample, _ = read_shard(pool, shard)
    assert (sample.key, sample.image) == (r"d\xe9j\xe0/caf\xe9", b"image")
    assert sample.metadata == {"label": r"d\xe9j\xe0"}
    assert read_image(pool, shard, key=sample.key, row=0, offset=0, nbytes=5) == b"image"


def test_no_rows_wanted(folder):
    pool, (shard,) = open_pool(folder)
    assert list(read_shard(pool, shard, rows=[])) == [ShardEnd(0, None)]


@pytest.mark.parametrize(
    ("paths", "keys"),
    [
        ([], []),
        (["a.jpg"], ["a"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a.jpg.webp", "a.png"], ["a.jpg", "a.jpg.webp", "a.png"]),
    ],
)
def test_keys(paths, keys):
    assert make_keys(paths) == keys


@given(st.lists(st.from_regex(r"[ab]{1,2}(\.(jpg|png)){1,3}", fullmatch=True), unique=True, max_size=30))
def test_keys_are_unique(paths):
    assert len(set(make_keys(paths))) == len(paths)
