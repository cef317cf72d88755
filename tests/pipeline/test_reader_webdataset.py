import dataclasses
import gzip
import io
import itertools
import json
import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, InputError
from operators.rejects import Damage, Reason
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool
from pipeline.readers import ShardEnd, read_image, read_shard, webdataset
from pipeline.readers.webdataset import is_safe, parse_json

UID = "0123456789abcdef0123456789abcdef"


def make_tar(members):
    """A tar of (name, bytes) or (name, TarInfo type) members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes) and len(content) == 1 and content.isdigit():
                member.type, member.linkname, content = content, "/etc/passwd", b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    """Reads a tar of the given members (or the given bytes): the samples and the end."""

    def read_members(members, rows=None, keep=False, **settings):
        data = members if isinstance(members, bytes) else make_tar(members)
        path = tmp_path / "00000.tar"
        path.write_bytes(data)
        pool = Pool.model_validate({"format": "webdataset", "path": str(path), **settings})
        *samples, end = read_shard(pool, list_shards(pool)[0], rows=rows, members=keep)
        assert isinstance(end, ShardEnd)
        assert end.rows == (samples[-1].row + 1 if samples else 0)
        if rows is None:
            assert [sample.row for sample in samples] == list(range(end.rows))
        assert len({sample.key for sample in samples}) == len(samples)
        return samples, end

    return read_members


def pair(key, image=b"image", text=b"a text"):
    return [(f"{key}.jpg", image), (f"{key}.txt", text)]


def test_a_whole_sample(read):
    metadata = {"uid": UID.upper(), "url": "https://a/b", "score": float("nan")}
    (sample,), end = read(
        [("a/b/01.JPG", b"img"), ("a/b/01.txt", "\ufeffgrüße".encode()), ("a/b/01.json", json.dumps(metadata).encode())]
    )
    assert (sample.row, sample.key, sample.image, sample.ext, sample.offset) == (0, "a/b/01", b"img", "jpg", 512)
    assert sample.caption == "grüße"
    assert sample.metadata == {"uid": UID.upper(), "url": "https://a/b", "score": None}
    assert (sample.uid, sample.uid_invalid, sample.reason) == (bytes.fromhex(UID), False, None)
    assert sample.members == {}
    assert end == ShardEnd(1)


def test_other_members_are_kept_only_for_export(read):
    members = [("1.cls", b"7"), *pair("1"), ("1.Mask.PNG", b"mask")]
    members[0] = ("1.cls", b"77")
    (sample,), _ = read(members, keep=True)
    assert list(sample.members.items()) == [
        ("cls", b"77"),
        ("jpg", b"image"),
        ("txt", b"a text"),
        ("mask.png", b"mask"),
    ]
    (same,), _ = read(members)
    assert (same.members, same.image, same.reason) == ({}, b"image", None)


def test_first_image_of_several_is_the_image(read):
    (sample,), _ = read([("1.png", b"first"), ("1.jpg", b"second"), ("1.txt", b"t")])
    assert (sample.image, sample.ext, sample.reason) == (b"first", "png", None)


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "TIFF", "Jpg"])
def test_image_extensions(read, extension):
    (sample,), _ = read([(f"1.{extension}", b"img"), ("1.TXT", b"t")])
    assert (sample.ext, sample.caption, sample.reason) == (extension.lower(), "t", None)


REJECTS = {
    "missing_image": [("1.txt", b"t")],
    "missing_text": [("1.jpg", b"i")],
    "blank_text": [("1.jpg", b"i"), ("1.txt", b" \n")],
    "undecodable_image": [("1.jpg", b""), ("1.txt", b"t")],
    "member_too_large": [("1.jpg", b"i" * 1001), ("1.txt", b"t")],
    "large_other_member": [*pair("1"), ("1.npy", b"i" * 1001)],
    "bad_json": [*pair("1"), ("1.json", b"{")],
    "json_array": [*pair("1"), ("1.json", b"[1]")],
    "bad_text_encoding": [("1.jpg", b"i"), ("1.txt", b"\xff\xfe")],
    "duplicate_key": [("1.jpg", b"i"), ("1.JPG", b"j"), ("1.txt", b"t")],
    "absolute_name": pair("/etc/1"),
    "parent_name": pair("a/../../1"),
    "dotdot": [("a/..", b"ii")],
    "windows_name": pair("C:\\1"),
    "symlink": [("1.jpg", tarfile.SYMTYPE), ("1.txt", b"t")],
    "hardlink": [("1.jpg", b"ii"), ("1.txt", tarfile.LNKTYPE)],
    "device": [("1.jpg", tarfile.CHRTYPE), ("1.txt", b"t")],
}
REASONS = {
    "blank_text": Reason.MISSING_TEXT,
    "large_other_member": Reason.MEMBER_TOO_LARGE,
    "json_array": Reason.BAD_JSON,
} | dict.fromkeys(
    ["absolute_name", "parent_name", "dotdot", "windows_name", "symlink", "hardlink", "device"], Reason.UNSAFE_NAME
)


@pytest.mark.parametrize("case", REJECTS)
def test_one_bad_sample_costs_one_sample(read, case):
    samples, end = read([*pair("0"), *REJECTS[case], *pair("2")], max_member_bytes=1000)
    assert [sample.reason for sample in samples] == [None, REASONS.get(case) or Reason(case), None]
    assert end == ShardEnd(3)


def test_a_link_is_never_followed(read):
    (sample,), _ = read([("1.jpg", tarfile.SYMTYPE), ("1.txt", b"text")], keep=True)
    assert (sample.image, sample.members, sample.caption) == (b"", {"txt": b"text"}, "text")


def test_a_reject_keeps_what_was_readable(read):
    (sample,), _ = read([("1.txt", b"text"), ("1.json", json.dumps({"uid": UID}).encode())])
    assert (sample.reason, sample.caption, sample.uid) == (Reason.MISSING_IMAGE, "text", bytes.fromhex(UID))


def test_several_faults_give_one_reason_by_precedence(read):
    samples, _ = read([("1.txt", b"\xff"), ("1.json", b"{"), *pair("2"), ("1.jpg", b"i"), ("1.jpg", b"i")])
    assert [sample.reason for sample in samples] == [Reason.MISSING_IMAGE, None, Reason.SPLIT_KEY]


def test_a_key_that_returns_is_split_and_gets_a_key_of_its_own(read):
    samples, _ = read([*pair("1"), *pair("2"), *pair("1"), *pair("2"), *pair("1")])
    assert [sample.key for sample in samples] == ["1", "2", "1.2", "2.2", "1.3"]
    assert [sample.reason for sample in samples] == [None, None, *[Reason.SPLIT_KEY] * 3]


@pytest.mark.parametrize(("uid", "invalid"), [("xyz", True), (5, True), ("", True), (None, False)])
def test_supplied_uids_that_are_none(read, uid, invalid):
    (sample,), _ = read([*pair("1"), ("1.json", json.dumps({"uid": uid}).encode())])
    assert (sample.uid, sample.uid_invalid, sample.reason) == (None, invalid, None)


def test_keys_end_at_the_first_dot_of_the_last_part(read):
    names = ["v1.0/a.jpg", "./b.jpg", "c.d.jpg", "README"]
    samples, _ = read([(name, b"img") for name in names], require_text=False)
    assert [sample.key for sample in samples] == ["v1.0/a", "b", "c", "README"]
    assert [sample.reason for sample in samples] == [None, None, Reason.MISSING_IMAGE, Reason.MISSING_IMAGE]


def test_folders_and_hidden_files_are_no_members(read):
    members = [("./", tarfile.DIRTYPE), ("._1.jpg", b"mac"), ("1.jpg", b"img"), ("._1.txt", b"mac"), ("1.txt", b"txt")]
    (sample,), end = read([*members, (".DS_Store", b"junk")])
    assert (sample.key, sample.reason, end) == ("1", None, ShardEnd(1))


def test_text_from_a_json_field(read):
    members = [("1.jpg", b"i"), ("1.json", b'{"alt": "from json"}'), *pair("2"), ("2.json", b'{"alt": "unused"}')]
    samples, _ = read([*members, ("3.jpg", b"i"), ("3.json", b'{"alt": 7}')], text_field="alt")
    assert [sample.caption for sample in samples] == ["from json", "a text", None]
    assert [sample.reason for sample in samples] == [None, None, Reason.MISSING_TEXT]


def test_text_that_is_not_required(read):
    (sample,), _ = read([("1.jpg", b"i")], require_text=False)
    assert (sample.caption, sample.reason) == (None, None)


def test_rows_are_the_same_whoever_asks(read):
    members = [*pair("0"), ("1.txt", b"t"), *pair("2"), *pair("0"), *pair("4")]
    everything, _ = read(members)
    for wanted in itertools.chain.from_iterable(itertools.combinations(range(6), n) for n in range(4)):
        some, end = read(members, rows=wanted)
        assert some == [sample for sample in everything if sample.row in wanted]
        assert end.damage is None


def test_rows_stop_reading_after_the_last(read):
    data = make_tar([*pair("0"), *pair("1")])[:3000]
    assert read(data, rows=[0])[1] == ShardEnd(1)


def test_empty_archive(read):
    assert read([]) == ([], ShardEnd(0))


def test_gzipped(read, tmp_path):
    data = make_tar([*pair("0"), *pair("1", image=b"the image")])
    samples, end = read(gzip.compress(data))
    assert (len(samples), end) == (2, ShardEnd(2))
    pool = Pool.model_validate({"format": "webdataset", "path": str(tmp_path)})
    sample = samples[1]
    image = read_image(
        pool, list_shards(pool)[0], key=sample.key, row=1, offset=sample.offset, nbytes=len(sample.image)
    )
    assert image == b"the image"


@pytest.mark.parametrize("cut", range(11, 200, 7))
def test_cut_gzip_is_damage(read, cut):
    data = gzip.compress(make_tar([*pair("0", bytes(range(256))), *pair("1")]))
    _, end = read(data[:cut])
    assert end.damage in (Damage.TRUNCATED, Damage.UNREADABLE)


SAMPLES = [*pair("0", b"i" * 700), ("0.json", b"{}"), *pair("1", b"j" * 512), *pair("2", b"")]
WHOLE = make_tar(SAMPLES)
STARTS = [0, 3584, 5632]
"""Where the samples of WHOLE begin."""


def test_a_cut_anywhere_keeps_the_samples_that_are_surely_whole(read):
    everything, _ = read(WHOLE)
    ends_512 = range(0, 7168, 512)
    for cut in sorted({*ends_512, *(end + 1 for end in ends_512), *range(300, 7168, 211)}):
        samples, end = read(WHOLE[:cut])
        assert samples == everything[: len(samples)]
        # A sample is surely whole once the header after it has been seen.
        assert len(samples) == max(0, sum(cut >= start + 512 for start in STARTS) - 1)
        assert end.damage is (Damage.TRUNCATED if cut >= 512 else Damage.UNREADABLE)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_flipped_bytes_cost_samples_or_the_rest_never_the_run(tmp_path_factory, flips):
    data = bytearray(WHOLE)
    for place, value in flips:
        data[place] = value
    path = tmp_path_factory.mktemp("flip") / "0.tar"
    path.write_bytes(data)
    pool = Pool.model_validate({"format": "webdataset", "path": str(path)})
    *samples, end = read_shard(pool, list_shards(pool)[0])
    assert [sample.row for sample in samples] == list(range(end.rows))
    assert end.damage is not None or end.rows == 3


def test_missing_and_foreign_shards(tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(WHOLE)
    pool = Pool.model_validate({"format": "webdataset", "path": str(path)})
    (shard,) = list_shards(pool)
    path.unlink()
    assert list(read_shard(pool, shard)) == [ShardEnd(0, Damage.MISSING, "no such file")]
    check_source(pool.sources[0], [shard])
    path.write_bytes(b"PAR1" + bytes(600))
    with pytest.raises(ConfigError, match="pool format must be parquet"):
        check_source(pool.sources[0], [shard])


@pytest.mark.parametrize("path", ["pool/*.tar", "pool", "pool/0.tar"])
def test_a_shard_may_be_a_link_whose_version_is_that_of_the_file(tmp_path, path):
    whole = tmp_path / "whole.tar"
    whole.write_bytes(make_tar(pair("a")))
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/0.tar").symlink_to(whole)
    pool = Pool(format="webdataset", path=str(tmp_path / path))
    (shard,) = list_shards(pool)
    assert shard.size == whole.stat().st_size
    sample, _ = read_shard(pool, shard)
    assert sample.key == "a"
    os.utime(whole, (0, 0))
    assert list_shards(pool)[0].fingerprint != shard.fingerprint
    whole.unlink()
    with pytest.raises(InputError, match=r"pool path must (hold files, got .*/0\.tar, a link to nothing|exist, got)"):
        list_shards(pool)


def test_denied_access_is_damage_only_on_a_local_disk(tmp_path, monkeypatch):
    (tmp_path / "0.tar").write_bytes(WHOLE)
    pool = Pool.model_validate({"format": "webdataset", "path": str(tmp_path)})
    (shard,) = list_shards(pool)

    def deny(*_, **__):
        raise PermissionError("denied")

    monkeypatch.setattr(webdataset, "open_unzipped", deny)
    assert list(read_shard(pool, shard)) == [ShardEnd(0, Damage.UNREADABLE, "denied")]
    with pytest.raises(PermissionError):
        list(read_shard(pool, dataclasses.replace(shard, url="memory://0.tar")))


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "..a/b", "a../b", "a/...", "é"])
def test_safe_names(name):
    assert is_safe(name)


@pytest.mark.parametrize(
    "name", ["", "/a", "\\a", "../a", "a/../b", "a/..", "..", "c:a", "a\\..\\b", "a\0b", "a\n/../b"]
)
def test_unsafe_names(name):
    assert not is_safe(name)


@pytest.mark.parametrize(
    "data", [b"", b"1", b"null", b"{", b"\xff", b'{"a": "\\ud800"}', b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000]
)
def test_json_that_is_no_object(data):
    assert parse_json(data) is None


def test_json_is_nested_in_so_many_levels_only():
    assert parse_json(b'{"a":' + b"[" * 63 + b"1" + b"]" * 63 + b"}") is not None
    assert parse_json(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_an_image_of_a_shard_that_was_damaged_since(tmp_path, damage):
    path = tmp_path / "00000.tar.gz"
    path.write_bytes(gzip.compress(make_tar(pair("1", image=random.Random(0).randbytes(5000)))))
    pool = Pool.model_validate({"format": "webdataset", "path": str(path)})
    (shard,) = list_shards(pool)
    sample, _ = read_shard(pool, shard)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:1000])
    elif damage == "flipped":
        data[100:4000] = bytes(3900)
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"image '1' of shard 00000\.tar\.gz must still have 5000 bytes, got: "):
        read_image(pool, shard, key="1", row=0, offset=sample.offset, nbytes=len(sample.image))


def test_json_edges():
    assert parse_json(b'\xef\xbb\xbf{"a": Infinity, "b": "\\ud83d\\ude00"}') == {"a": None, "b": "😀"}


DATA = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample"


@pytest.mark.skipif(not DATA.is_dir(), reason="the real tars are not beside this checkout (../shared/data)")
def test_real_photographs():
    pool = Pool.model_validate({"format": "webdataset", "path": str(DATA / "*.tar")})
    for shard in list_shards(pool):
        with tarfile.open(shard.url) as archive:
            expected = [archive.extractfile(member).read() for member in archive if member.name.endswith(".jpg")]
        *samples, end = read_shard(pool, shard)
        assert [sample.image for sample in samples] == expected
        assert {sample.reason for sample in samples} == {None}
        assert end == ShardEnd(50)
