import datetime
import decimal
import itertools
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data.extensions import ArrowPythonObjectType

from operators.rejects import Damage, Reason
from pipeline.listing import list_shards
from pipeline.pool import Pool
from pipeline.readers import ShardEnd, read_image, read_shard
from pipeline.readers.parquet import sniff_extension

UID = "0123456789abcdef0123456789abcdef"
JPG, PNG = b"\xff\xd8\xffjpeg", b"\x89PNG\r\n\x1a\npng"


@pytest.fixture
def read(tmp_path):
    """Writes columns as one Parquet file and reads it: the samples and the end."""

    def read_columns(columns, rows=None, keep=False, group=None, **settings):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
        pool = Pool.model_validate({"format": "parquet", "path": str(tmp_path / "t.parquet"), **settings})
        *samples, end = read_shard(pool, list_shards(pool)[0], rows=rows, members=keep)
        assert isinstance(end, ShardEnd)
        assert end.rows == (samples[-1].row + 1 if samples else 0)
        assert len({sample.key for sample in samples}) == len(samples)
        return samples, end

    return read_columns


def test_a_whole_row(read):
    columns = {"jpg": [JPG], "text": ["grüße"], "uid": [UID], "width": [3], "ratio": [float("nan")]}
    (sample,), end = read(columns, keep=True)
    assert (sample.row, sample.key, sample.image, sample.ext, sample.offset) == (0, "00000000", JPG, "jpg", 0)
    assert (sample.caption, sample.uid, sample.uid_invalid) == ("grüße", bytes.fromhex(UID), False)
    assert sample.metadata == {"width": 3, "ratio": None}
    assert (sample.reason, sample.members, end) == (None, {"jpg": JPG}, ShardEnd(1))


def test_metadata_is_what_json_can_hold(read):
    columns = {
        "jpg": [JPG],
        "when": [datetime.datetime(2024, 5, 6, 7, 8)],
        "day": [datetime.date(2024, 5, 6)],
        "price": [decimal.Decimal("1.50")],
        "boxes": [[[1.0, float("inf")]]],
        "nested": [{"a": 1, "b": None}],
        "raw": [b"left out"],
        "raws": [[b"left out"]],
        "flag": [True],
        "none": pa.nulls(1),
    }
    (sample,), _ = read(columns)
    assert sample.metadata == {
        "when": "2024-05-06T07:08:00",
        "day": "2024-05-06",
        "price": "1.50",
        "boxes": [[1.0, None]],
        "nested": {"a": 1, "b": None},
        "flag": True,
        "none": None,
    }


def test_huggingface_struct(read, tmp_path):
    (tmp_path / "beside.png").write_bytes(PNG)
    images = [
        {"bytes": JPG, "path": "x.png"},
        {"bytes": None, "path": "beside.png"},
        {"bytes": None, "path": None},
        None,
    ]
    samples, _ = read({"image": images, "label": [1, 2, 3, 4]})
    assert [(s.image, s.ext, s.reason) for s in samples] == [
        (JPG, "jpg", None),
        (PNG, "png", None),
        (b"", "", Reason.MISSING_IMAGE),
        (b"", "", Reason.MISSING_IMAGE),
    ]
    assert samples[0].metadata == {"label": 1}


def test_bad_rows_cost_one_row_each(read):
    jpgs = [JPG, None, b"", b"x" * 101, JPG, JPG, JPG]
    texts = ["t", "t", "t", "t", None, " ", "t"]
    samples, end = read({"jpg": jpgs, "t": texts}, text_column="t", max_member_bytes=100)
    assert [sample.reason for sample in samples] == [
        None,
        Reason.MISSING_IMAGE,
        Reason.UNDECODABLE_IMAGE,
        Reason.MEMBER_TOO_LARGE,
        Reason.MISSING_TEXT,
        Reason.MISSING_TEXT,
        None,
    ]
    assert end == ShardEnd(7)
    assert [sample.image for sample in samples[1:4]] == [b""] * 3


def test_text_that_is_not_utf8_and_other_cells_that_python_cannot_hold(read):
    columns = {
        "jpg": [JPG] * 3,
        "text": raw_strings(),
        "day": pa.array([0, 0, 2**31 - 1], pa.int32()).cast(pa.date32()),
    }
    samples, _ = read(columns)
    assert [sample.reason for sample in samples] == [None, Reason.BAD_TEXT_ENCODING, Reason.BAD_ROW]
    assert [sample.caption for sample in samples] == ["ok", None, "ok"]
    assert [sample.metadata for sample in samples] == [{"day": "1970-01-01"}, {"day": "1970-01-01"}, {}]


def raw_strings():
    """Strings as a careless writer leaves them: `ok`, two bytes that are not UTF-8, `ok`."""
    binary = pa.array([b"ok", b"\xff\xfe", b"ok"])
    return pa.Array.from_buffers(pa.string(), 3, binary.buffers())


def test_paths(read, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(JPG)
    (tmp_path / "images" / "b.avif").write_bytes(b"unknown")
    (tmp_path / "empty.jpg").write_bytes(b"")
    inside = str(tmp_path / "images" / "a.jpg")
    paths = ["images/a.jpg", "images/b.avif", "gone.jpg", "empty.jpg", None, inside, f"file://{inside}", "images"]
    samples, end = read({"file": paths}, path_column="file")
    assert [(s.image, s.ext, s.reason) for s in samples] == [
        (JPG, "jpg", None),
        (b"unknown", "avif", None),
        (b"", "", Reason.MISSING_IMAGE),
        (b"", "", Reason.UNDECODABLE_IMAGE),
        (b"", "", Reason.MISSING_IMAGE),
        (JPG, "jpg", None),
        (JPG, "jpg", None),
        (b"", "", Reason.MISSING_IMAGE),
    ]
    assert end == ShardEnd(8)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jpg", "images/../../x.jpg", "http://a/b.jpg", "a\0b.jpg", "."])
def test_paths_that_lead_out_of_the_root(read, path):
    (sample,), _ = read({"file": [path]}, path_column="file")
    assert (sample.image, sample.reason) == (b"", Reason.UNSAFE_NAME)


def test_made_up_keys_are_never_those_of_other_rows(read):
    keys = ["a", "a", "a.2", "a#row-00000004", "a", "row-00000000", "#row-00000006", None]
    samples, _ = read({"jpg": [JPG] * 8, "k": keys}, key_column="k")
    twice, bad = Reason.DUPLICATE_KEY, Reason.BAD_ROW
    assert [(sample.key, sample.reason) for sample in samples] == [
        ("a", None),
        ("a#row-00000001", twice),
        ("a.2", None),
        ("a#row-00000004#row-00000003", bad),
        ("a#row-00000004", twice),
        ("row-00000000", None),
        ("#row-00000006#row-00000006", bad),
        ("#row-00000007", bad),
    ]


def test_columns_nested_too_deeply_are_left_out(read):
    def nested(levels):
        return 1 if levels == 0 else {"a": nested(levels - 1)}

    (sample,), _ = read({"jpg": [JPG], "sound": [nested(64)], "deep": [nested(65)]})
    assert sample.metadata == {"sound": nested(64)}


class Boom:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_objects_that_a_file_brings_are_never_unpickled(read):
    kind = ArrowPythonObjectType()  # as Ray registers it wherever ray.data is imported
    bombs = pa.ExtensionArray.from_storage(kind, pa.array([pickle.dumps(Boom())], kind.storage_type))
    inside = pa.StructArray.from_arrays([pa.array([JPG]), bombs], ["bytes", "more"])
    (sample,), end = read({"jpg": [JPG], "bomb": bombs, "nested": inside, "n": [1]})
    assert (sample.image, sample.metadata, end) == (JPG, {"n": 1}, ShardEnd(1))
    _, end = read({"image": inside})
    assert end.damage is Damage.UNREADABLE


def test_keys_and_uids(read):
    columns = {"jpg": [JPG] * 5, "k": ["a", "b", "a", None, "a"], "u": [UID, "x", None, "", UID.upper()]}
    samples, _ = read(columns, key_column="k", uid_column="u")
    assert [sample.key for sample in samples] == ["a", "b", "a#row-00000002", "#row-00000003", "a#row-00000004"]
    reasons = [None, None, Reason.DUPLICATE_KEY, Reason.BAD_ROW, Reason.DUPLICATE_KEY]
    assert [sample.reason for sample in samples] == reasons
    assert [sample.uid_invalid for sample in samples] == [False, True, False, True, False]
    assert samples[4].uid == bytes.fromhex(UID)


@pytest.mark.parametrize("settings", [{}, {"key_column": "k"}])
def test_rows_are_the_same_whoever_asks(read, settings):
    columns = {"jpg": [JPG + bytes([i]) for i in range(7)], "k": [1, 2, 1, 3, 1, 2, 4]}
    everything, _ = read(columns, group=2, **settings)
    for wanted in itertools.chain.from_iterable(itertools.combinations(range(8), n) for n in range(3)):
        some, end = read(columns, group=2, rows=wanted, **settings)
        assert some == [sample for sample in everything if sample.row in wanted]
        assert end.damage is None


def test_many_row_groups_and_batches(read):
    samples, end = read({"jpg": [JPG + str(i).encode() for i in range(300)]}, group=130)
    assert [sample.image for sample in samples] == [JPG + str(i).encode() for i in range(300)]
    assert [sample.row for sample in samples] == list(range(300))
    assert end == ShardEnd(300)


def test_one_image(read, tmp_path):
    read({"jpg": [JPG + bytes([i]) for i in range(9)]}, group=4)
    pool = Pool.model_validate({"format": "parquet", "path": str(tmp_path)})
    (shard,) = list_shards(pool)
    for row in range(9):
        image = read_image(pool, shard, key="", row=row, offset=row, nbytes=len(JPG) + 1)
        assert image == JPG + bytes([row])


def test_no_rows(read):
    assert read({"jpg": pa.array([], pa.binary())}) == ([], ShardEnd(0))


def test_dictionary_and_large_types(read):
    columns = {
        "jpg": pa.array([JPG, JPG], pa.large_binary()),
        "text": pa.array(["a", "b"]).dictionary_encode(),
    }
    samples, _ = read(columns)
    assert [sample.caption for sample in samples] == ["a", "b"]


def test_a_shard_with_another_schema_is_unreadable(read):
    _, end = read({"url": ["a"]})
    assert (end.rows, end.damage) == (0, Damage.UNREADABLE)
    assert "download it first with img2dataset" in end.message


def damage(tmp_path, change):
    path = tmp_path / "d.parquet"
    table = pa.table({"jpg": [JPG + bytes([i]) * 50 for i in range(90)], "text": [f"text {i}" for i in range(90)]})
    pq.write_table(table, path, row_group_size=30, write_page_checksum=True, compression="none", use_dictionary=False)
    path.write_bytes(change(path.read_bytes()))
    pool = Pool.model_validate({"format": "parquet", "path": str(path)})
    *samples, end = read_shard(pool, list_shards(pool)[0])
    assert [sample.row for sample in samples] == list(range(end.rows))
    return end


def test_a_corrupt_page_keeps_the_rows_before_it(tmp_path):
    marker = JPG + bytes([45]) * 50
    end = damage(tmp_path, lambda data: data.replace(marker, marker.upper()))
    assert (end.rows, end.damage) == (30, Damage.TRUNCATED)
    assert end.message.startswith("bad page at row 30: ")


@pytest.mark.parametrize("cut", [0, 3, 100, 5000, -1])
def test_a_cut_file_is_unreadable(tmp_path, cut):
    end = damage(tmp_path, lambda data: data[:cut])
    assert (end.rows, end.damage) == (0, Damage.UNREADABLE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_flipped_bytes_never_crash(tmp_path_factory, place, value):
    def flip(data):
        index = int(place * len(data))
        return data[:index] + bytes([value]) + data[index + 1 :]

    end = damage(tmp_path_factory.mktemp("flip"), flip)
    assert end.damage is not None or end.rows == 90


@pytest.mark.parametrize(
    ("start", "extension"),
    [
        (JPG, "jpg"),
        (PNG, "png"),
        (b"GIF89a", "gif"),
        (b"RIFF....WEBP", "webp"),
        (b"RIFF....WAVE", ""),
        (b"BM", "bmp"),
        (b"II*\0", "tiff"),
        (b"MM\0*", "tiff"),
        (b"", ""),
    ],
)
def test_sniffed_extensions(start, extension):
    assert sniff_extension(start) == extension


DATA = Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "test-00000.parquet"


@pytest.mark.skipif(not DATA.is_file(), reason="the real table is not beside this checkout (../shared/data)")
def test_real_table():
    pool = Pool.model_validate({"format": "parquet", "path": str(DATA)})
    (shard,) = list_shards(pool)
    *samples, end = read_shard(pool, shard)
    table = pq.read_table(DATA)
    assert [sample.image for sample in samples] == table.column("jpg").to_pylist()
    assert [sample.metadata["label"] for sample in samples] == table.column("label").to_pylist()
    assert end == ShardEnd(10_000)
