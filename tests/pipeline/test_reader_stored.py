"""Reading pools of embeddings, without Ray: what each row brings, and what is wrong with it."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import ConfigError, InputError
from operators.rejects import Damage, Reason
from pipeline.array_files import pair
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool
from pipeline.readers import read_shard
from tests.embedding_pools import table, uid, unit_rows, write_clip_retrieval, write_datacomp


def open_pool(path, form="clip_retrieval", **settings):
    pool = Pool.model_validate({"format": form, "path": str(path), **settings})
    return pool, list_shards(pool)


def read(pool, shard, **options):
    *samples, end = read_shard(pool, shard, **options)
    return samples, end


def test_rows_bring_their_vectors_captions_and_uids(tmp_path):
    x_ND, y_ND = unit_rows(5), unit_rows(5, dim=4, seed=1)
    write_clip_retrieval(tmp_path, [x_ND[:3], x_ND[3:]], [y_ND[:3], y_ND[3:]])
    pool, shards = open_pool(tmp_path)
    assert [shard.name for shard in shards] == ["metadata/metadata_0.parquet", "metadata/metadata_1.parquet"]
    samples, end = read(pool, shards[1], arrays=["text_emb"])
    assert (end.rows, end.damage) == (2, None)
    assert [(s.row, s.key, s.caption) for s in samples] == [(0, "00000000", "text 3"), (1, "00000001", "text 4")]
    assert [s.uid.hex() for s in samples] == [uid(3), uid(4)]
    assert (samples[0].image, samples[0].reason) == (b"", None)
    np.testing.assert_array_equal([s.vectors["img_emb"] for s in samples], x_ND[3:])
    np.testing.assert_array_equal([s.vectors["text_emb"] for s in samples], y_ND[3:])


def test_only_images_are_read_unasked_and_only_wanted_rows(tmp_path):
    x_ND = unit_rows(10)
    write_clip_retrieval(tmp_path, [x_ND], [x_ND])
    pool, (shard,) = open_pool(tmp_path)
    samples, end = read(pool, shard, rows=[2, 7])
    assert ([s.row for s in samples], end.rows) == ([2, 7], 8)
    assert samples[1].vectors.keys() == {"img_emb"}
    np.testing.assert_array_equal(samples[1].vectors["img_emb"], x_ND[7])


@pytest.mark.parametrize("rows", [4095, 4096, 4097, 9000])
def test_blocks_and_batches_stay_aligned(tmp_path, rows):
    x_ND = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 2, axis=1)
    write_clip_retrieval(tmp_path, [x_ND])
    pool, (shard,) = open_pool(tmp_path)
    samples, end = read(pool, shard)
    assert end.rows == rows
    np.testing.assert_array_equal([s.vectors["img_emb"][0] for s in samples], np.arange(rows))
    assert samples[-1].uid.hex() == uid(rows - 1)


def test_names_of_files_that_belong_together():
    names = ["a/metadata/metadata_01.parquet", "a/img_emb/img_emb_01.npy", "img_emb/img_emb_2.npy", "other.npy"]
    assert pair("clip_retrieval", names) == [
        ("metadata/metadata_2.parquet", "img_emb/img_emb_2.npy"),
        ("a/metadata/metadata_01.parquet", "a/img_emb/img_emb_01.npy"),
    ]
    with_text = pair("clip_retrieval", [*names, "a/text_emb/text_emb_01.npy"])
    assert with_text[0][2] == "text_emb/text_emb_2.npy"
    assert pair("datacomp", ["x/0.parquet", "1.npz"]) == [("1.parquet", "1.npz"), ("x/0.parquet", "x/0.npz")]
    assert pair("datacomp", ["x/0.parquet"]) == [("x/0.parquet",)]
    assert pair("clip_retrieval", []) == []


def damage_of(pool, shard):
    samples, end = read(pool, shard, arrays=["text_emb"])
    return len(samples), end.damage, end.message


def test_a_lost_file_makes_its_shard_missing(tmp_path):
    x_ND = unit_rows(2)
    write_clip_retrieval(tmp_path, [x_ND] * 3, [x_ND] * 3)
    (tmp_path / "img_emb/img_emb_0.npy").unlink()
    (tmp_path / "metadata/metadata_1.parquet").unlink()
    (tmp_path / "text_emb/text_emb_2.npy").unlink()
    pool, shards = open_pool(tmp_path)
    assert [damage_of(pool, shard)[:2] for shard in shards] == [(0, Damage.MISSING)] * 3


def test_arrays_of_another_length_are_unreadable(tmp_path):
    write_clip_retrieval(tmp_path, [unit_rows(4)])
    np.save(tmp_path / "img_emb/img_emb_0.npy", unit_rows(3))
    pool, (shard,) = open_pool(tmp_path)
    assert damage_of(pool, shard) == (0, Damage.UNREADABLE, "arrays must have the table's 4 rows, got img_emb 3")


@pytest.mark.parametrize("kept", [0, 5, 128, 128 + 32, 128 + 2 * 32 + 5, 128 + 4 * 32 - 1])
def test_a_cut_array_keeps_what_came_before_the_cut(tmp_path, kept):
    write_clip_retrieval(tmp_path, [unit_rows(4)])
    path = tmp_path / "img_emb/img_emb_0.npy"
    path.write_bytes(path.read_bytes()[:kept])
    pool, (shard,) = open_pool(tmp_path)
    rows, damage, _ = damage_of(pool, shard)
    assert rows == max(0, kept - 128) // 32
    assert damage == (Damage.TRUNCATED if rows else Damage.UNREADABLE)


def test_objects_are_never_unpickled(tmp_path):
    write_clip_retrieval(tmp_path, [unit_rows(2)])
    np.save(tmp_path / "img_emb/img_emb_0.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    pool, shards = open_pool(tmp_path)
    rule = "must be an array of floating-point numbers, got dtype object; Python objects are never unpickled"
    with pytest.raises(InputError, match=re.escape(rule)):
        check_source(pool.sources[0], shards)
    assert damage_of(pool, shards[0])[1] == Damage.UNREADABLE


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.zeros((2, 3), dtype=np.int8), "got dtype int8"),
        (np.zeros((2, 0), dtype=np.float16), "must have rows of 1 to 1048576 bytes, got 2 rows of 0"),
        (np.zeros((1, 600_000), dtype=np.float16), "must have rows of 1 to 1048576 bytes, got 1 rows of 1200000"),
        (np.zeros((2, 3, 4), dtype=np.float16), "got row-major order and shape (2, 3, 4)"),
        (np.asfortranarray(unit_rows(2)), "got column-major order and shape (2, 8)"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, rule):
    write_clip_retrieval(tmp_path, [unit_rows(2)])
    np.save(tmp_path / "img_emb/img_emb_0.npy", array)
    pool, shards = open_pool(tmp_path)
    with pytest.raises(InputError, match=re.escape(rule)):
        check_source(pool.sources[0], shards)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_any_floats(tmp_path, dtype):
    x_ND = unit_rows(3).astype(dtype)
    write_clip_retrieval(tmp_path, [x_ND])
    pool, (shard,) = open_pool(tmp_path)
    np.testing.assert_array_equal([s.vectors["img_emb"] for s in read(pool, shard)[0]], x_ND)


def test_datacomp_with_and_without_features(tmp_path):
    rows = table(0, 3, original_width=[10, 20, 30], clip_l14_similarity_score=[0.1, 0.2, None], url=["u", "v", "w"])
    x_ND, y_ND = unit_rows(3).astype(np.float16), unit_rows(3, seed=1).astype(np.float16)
    write_datacomp(tmp_path / "with", "00", rows, b32_img=x_ND, l14_img=x_ND, l14_txt=y_ND)
    pool, shards = open_pool(tmp_path / "with", "datacomp")
    check_source(pool.sources[0], shards)
    samples, _ = read(pool, shards[0], arrays=["l14_txt"])
    assert samples[0].vectors.keys() == {"b32_img", "l14_img", "l14_txt"}
    np.testing.assert_array_equal([s.vectors["l14_txt"] for s in samples], y_ND)
    assert samples[1].metadata == {"original_width": 20, "clip_l14_similarity_score": 0.2, "url": "v"}
    write_datacomp(tmp_path / "bare", "00", rows)
    for path in (tmp_path / "bare", tmp_path / "bare/*.parquet", tmp_path / "bare/00.parquet"):
        pool, (shard,) = open_pool(path, "datacomp")
        samples, end = read(pool, shard)
        assert (shard.files, end.rows, samples[2].vectors) == ((), 3, {})
    for path in (tmp_path / "with/*.parquet", tmp_path / "with/00.parquet"):
        assert len(open_pool(path, "datacomp")[1][0].files) == 1


def test_damaged_features(tmp_path):
    x_ND = unit_rows(300, dim=64)
    for name in ("cut", "flipped", "lost", "sound"):
        write_datacomp(tmp_path, name, table(0, 300), l14_img=x_ND)
    (tmp_path / "lost.npz").unlink()
    data = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    (tmp_path / "flipped.npz").write_bytes(data[:50_000] + bytes([data[50_000] ^ 1]) + data[50_001:])
    pool, shards = open_pool(tmp_path, "datacomp")
    found = {shard.name: damage_of(pool, shard)[1] for shard in shards}
    assert found == {
        "cut.parquet": Damage.UNREADABLE,
        "flipped.parquet": Damage.UNREADABLE,
        "lost.parquet": Damage.MISSING,
        "sound.parquet": None,
    }


def test_text_is_judged_as_in_other_tables(tmp_path):
    write_datacomp(tmp_path, "00", pa.table({"text": ["a", " ", None], "uid": [uid(0), "x", None]}))
    pool, (shard,) = open_pool(tmp_path, "datacomp", text_column="text")
    samples, _ = read(pool, shard)
    assert [s.reason for s in samples] == [None, Reason.MISSING_TEXT, Reason.MISSING_TEXT]
    assert [s.uid_invalid for s in samples] == [False, True, False]
    pool, shards = open_pool(tmp_path, "datacomp", text_column="texts")
    with pytest.raises(ConfigError, match="did you mean 'text'"):
        check_source(pool.sources[0], shards)


def test_semdedup_array_is_cut_into_shards(tmp_path):
    x_ND = unit_rows(7)
    np.save(tmp_path / "embeddings.npy", x_ND)
    np.save(tmp_path / "paths.npy", np.array([f"p{i}" for i in range(6)] + [uid(6)]))
    pool, shards = open_pool(tmp_path, "semdedup", shard_size=3)
    assert [shard.rows for shard in shards] == [(0, 3), (3, 6), (6, 7)]
    assert len({shard.fingerprint for shard in shards}) == 3
    check_source(pool.sources[0], shards)
    samples = [sample for shard in shards for sample in read(pool, shard)[0]]
    assert [s.row for s in samples] == [0, 1, 2, 0, 1, 2, 0]
    assert [s.key for s in samples] == [f"p{i}" for i in range(6)] + [uid(6)]
    assert [s.uid for s in samples] == [None] * 6 + [bytes.fromhex(uid(6))]
    assert not any(s.uid_invalid for s in samples)
    np.testing.assert_array_equal([s.vectors["embeddings"] for s in samples], x_ND)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bare_memory_maps(tmp_path, dtype):
    x_ND = unit_rows(5).astype(dtype)
    (tmp_path / "emb.bin").write_bytes(x_ND.tobytes())
    (tmp_path / "paths.bin").write_bytes(np.array([b"a", b"bc", b"d", b"\xff", b"a"], dtype="S3").tobytes())
    settings = {"dim": 8, "dtype": dtype, "paths_path": str(tmp_path / "paths.bin"), "path_bytes": 3}
    pool, (shard,) = open_pool(tmp_path / "emb.bin", "semdedup", **settings)
    samples, end = read(pool, shard)
    assert end.rows == 5
    assert [s.key for s in samples] == ["a", "bc", "d", "\\xff", "a#row-00000004"]
    assert [s.reason for s in samples] == [None] * 4 + [Reason.DUPLICATE_KEY]
    np.testing.assert_array_equal([s.vectors["embeddings"] for s in samples], x_ND)
    with pytest.raises(InputError, match="dim must be given where an array is a bare memory map"):
        open_pool(tmp_path / "emb.bin", "semdedup")


def write_clusters(folder, *clusters):
    (folder / "sorted_clusters").mkdir()
    for i, rows in enumerate(clusters):
        np.save(folder / f"sorted_clusters/cluster_{i}.npy", np.array(rows, dtype="<U32").reshape(-1, 4))


@pytest.mark.parametrize("place", ["", "sorted_clusters", "sorted_clusters/cluster_*.npy"])
def test_sorted_clusters_point_into_the_array(tmp_path, place):
    x_ND = unit_rows(5)
    np.save(tmp_path / "embeddings.npy", x_ND)
    write_clusters(
        tmp_path,
        [("p4", "4", "0.75", "0"), (uid(1), "1", "0.5", "0"), ("p9", "9", "0.1", "0"), ("px", "x", "0.1", "0")],
        [("p0", "0", "1e-3", "1")],
        [],
    )
    pool, shards = open_pool(tmp_path / place, "semdedup")
    check_source(pool.sources[0], shards)
    samples, end = read(pool, shards[0])
    assert (len(shards), end.rows, end.damage) == (3, 4, None)
    assert [s.key for s in samples] == ["p4", uid(1), "p9", "px"]
    assert [s.reason for s in samples] == [None, None, Reason.BAD_ROW, Reason.BAD_ROW]
    assert samples[0].metadata == {"cluster": 0, "distance": 0.75}
    assert samples[1].uid == bytes.fromhex(uid(1))
    np.testing.assert_array_equal([s.vectors["embeddings"] for s in samples[:2]], x_ND[[4, 1]])
    assert [read(pool, shard)[1].rows for shard in shards] == [4, 1, 0]


def test_sorted_clusters_without_their_array(tmp_path):
    write_clusters(tmp_path, [("p4", "4", "0.75", "0")])
    pool, (shard,) = open_pool(tmp_path / "sorted_clusters", "semdedup")
    (sample,), _ = read(pool, shard)
    assert (sample.vectors, sample.reason, sample.metadata["distance"]) == ({}, None, 0.75)


def test_a_folder_of_neither(tmp_path):
    np.save(tmp_path / "a.npy", unit_rows(2))
    np.save(tmp_path / "b.npy", unit_rows(2))
    with pytest.raises(InputError, match=r"must be an array or hold embeddings.npy or sorted clusters"):
        open_pool(tmp_path, "semdedup")
    np.save(tmp_path / "embeddings.npy", unit_rows(2))
    np.save(tmp_path / "paths.npy", np.array(["a", "b", "c"]))
    pool, (shard,) = open_pool(tmp_path, "semdedup")
    assert read(pool, shard)[1].message == "paths must be one for each of 2 rows, got 3"


def test_a_table_is_no_pool_of_images(tmp_path):
    pq.write_table(table(0, 1), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="image_column must be used with format parquet, got format datacomp"):
        open_pool(tmp_path, "datacomp", image_column="uid")
