import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.errors import InputError
from operators.rejects import Damage
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool
from pipeline.readers import ShardEnd, read_image, read_shard

PIXELS_NHW = np.arange(4 * 3 * 5, dtype=np.uint8).reshape(4, 3, 5)
IMAGES = struct.pack(">4I", 0x803, 4, 3, 5) + PIXELS_NHW.tobytes()
LABELS = struct.pack(">2I", 0x801, 4) + bytes([7, 0, 255, 7])


@pytest.fixture
def open_pair(tmp_path):
    def write(images=IMAGES, labels=LABELS, **settings):
        (tmp_path / "t-images-idx3-ubyte").write_bytes(images)
        if labels is not None:
            (tmp_path / "t-labels-idx1-ubyte").write_bytes(labels)
        pool = Pool.model_validate({"format": "idx", "path": str(tmp_path), **settings})
        return pool, list_shards(pool)[0]

    return write


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image)))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_images_and_labels(open_pair, pack):
    pool, shard = open_pair(pack(IMAGES), pack(LABELS))
    check_source(pool.sources[0], [shard])
    *samples, end = read_shard(pool, shard, members=True)
    assert end == ShardEnd(4)
    assert [sample.key for sample in samples] == ["00000000", "00000001", "00000002", "00000003"]
    assert [sample.metadata for sample in samples] == [{"label": 7}, {"label": 0}, {"label": 255}, {"label": 7}]
    assert [sample.offset for sample in samples] == [16, 31, 46, 61]
    np.testing.assert_array_equal([pixels(sample.image) for sample in samples], PIXELS_NHW)
    assert {sample.ext for sample in samples} == {"png"}
    assert samples[0].members == {"png": samples[0].image}
    assert list(read_shard(pool, shard, rows=[1, 3, 4], members=True)) == [samples[1], samples[3], end]
    sample = samples[2]
    assert read_image(pool, shard, key="2", row=2, offset=46, nbytes=len(sample.image)) == sample.image


def test_without_labels(open_pair):
    pool, shard = open_pair(labels=None)
    *samples, end = read_shard(pool, shard)
    assert ({sample.metadata is None for sample in samples}, end.rows) == ({True}, 4)


@pytest.mark.parametrize(
    ("images", "labels", "rows", "damage"),
    [
        (IMAGES[:-1], LABELS, 3, Damage.TRUNCATED),
        (IMAGES[:16], LABELS, 0, Damage.TRUNCATED),
        (IMAGES[:15], LABELS, 0, Damage.UNREADABLE),
        (b"", LABELS, 0, Damage.UNREADABLE),
        (IMAGES, LABELS[:-2], 2, Damage.TRUNCATED),
        (IMAGES, LABELS[:7], 0, Damage.UNREADABLE),
        (LABELS, LABELS, 0, Damage.UNREADABLE),
        (IMAGES, IMAGES, 0, Damage.UNREADABLE),
        (struct.pack(">4I", 0x803, 4, 0, 5), LABELS, 0, Damage.UNREADABLE),
        (struct.pack(">4I", 0x803, 4, 2**31, 2**31), LABELS, 0, Damage.UNREADABLE),
        (struct.pack(">4I", 0x803, 2**32 - 1, 3, 5) + bytes(30), None, 2, Damage.TRUNCATED),
    ],
)
def test_damage(open_pair, images, labels, rows, damage):
    pool, shard = open_pair(images, labels)
    *samples, end = read_shard(pool, shard)
    assert [sample.row for sample in samples] == list(range(rows))
    assert (end.rows, end.damage) == (rows, damage)


def test_cut_gzip(open_pair):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 30), dtype=np.uint8)
    whole = gzip.compress(struct.pack(">4I", 0x803, 40, 30, 30) + noise.tobytes())
    pool, shard = open_pair(whole[: len(whole) // 2], None)
    *samples, end = read_shard(pool, shard)
    assert 0 < len(samples) < 40
    np.testing.assert_array_equal([pixels(sample.image) for sample in samples], noise[: len(samples)])
    assert (end.rows, end.damage) == (len(samples), Damage.TRUNCATED)


def test_labels_of_another_file_are_refused_before_any_work(open_pair):
    pool, shard = open_pair(labels=struct.pack(">2I", 0x801, 5) + bytes(5))
    with pytest.raises(InputError, match="label header must be that of 4 8-bit labels, got 0000080100000005"):
        check_source(pool.sources[0], [shard])


DATA = Path(__file__).parents[3] / "shared" / "data" / "mnist"


@pytest.mark.skipif(not DATA.is_dir(), reason="the real MNIST files are not beside this checkout (../shared/data)")
def test_mnist():
    pool = Pool.model_validate({"format": "idx", "path": str(DATA)})
    (shard,) = list_shards(pool)
    *samples, end = read_shard(pool, shard, rows=range(100))
    expected = np.frombuffer(gzip.decompress((DATA / shard.name).read_bytes()), np.uint8, 100 * 784, 16)
    np.testing.assert_array_equal([pixels(sample.image) for sample in samples], expected.reshape(100, 28, 28))
    assert [sample.metadata["label"] for sample in samples[:5]] == [7, 2, 1, 0, 4]
    assert end == ShardEnd(100)
