import io
import struct
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.rejects import Damage
from pipeline.readers.sample import ShardDamagedError
from pipeline.readers.tar import TarReader


def make_tar(members, form=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def read_all(data):
    """Name -> bytes of every file, and how it ended."""
    reader = TarReader(io.BytesIO(data))
    found = []
    try:
        for entry in reader:
            found.append((entry.name, reader.read(entry)))
    except ShardDamagedError as error:
        return found, error
    return found, None


MEMBERS = [("a.jpg", b"x" * 700), ("a.txt", b"hello"), ("b.jpg", b""), ("b.txt", b"y" * 512)]
LONG = "folder/" * 40 + "image.jpg"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_tarfile_wrote(form):
    assert read_all(make_tar(MEMBERS, form)) == (MEMBERS, None)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_unicode_names(form):
    members = [(LONG, b"1"), ("grüße/猫.jpg", b"2"), ("plain.jpg", b"3")]
    assert read_all(make_tar(members, form)) == (members, None)


def test_ustar_prefix():
    members = [("p" * 90 + "/" + "n" * 90, b"1")]
    assert read_all(make_tar(members, tarfile.USTAR_FORMAT)) == (members, None)


def test_offsets_point_at_the_data():
    data = make_tar(MEMBERS)
    for entry, (_, expected) in zip(TarReader(io.BytesIO(data)), MEMBERS, strict=True):
        assert data[entry.offset : entry.offset + entry.size] == expected


def test_unread_members_are_skipped():
    reader = TarReader(io.BytesIO(make_tar(MEMBERS)))
    assert [reader.read(entry) for entry in reader if entry.name == "b.txt"] == [b"y" * 512]


def test_name_that_is_not_utf8_becomes_visible_text():
    member = tarfile.TarInfo("a\udcff.jpg")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
        archive.addfile(member)
    assert [name for name, _ in read_all(buffer.getvalue())[0]] == ["a\\xff.jpg"]


def set_header(data, start, where, value):
    """`data` with a header field changed and the header's checksum made right again."""
    block = bytearray(data[start : start + 512])
    block[where : where + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:start] + bytes(block) + data[start + 512 :]


def test_old_v7_header():
    data = set_header(make_tar([("a.jpg", b"1")]), 0, 257, bytes(8))
    assert read_all(data) == ([("a.jpg", b"1")], None)


def test_base_256_size():
    data = set_header(make_tar([("a.jpg", b"1")]), 0, 124, b"\x80" + struct.pack(">3xQ", 1))
    assert read_all(data) == ([("a.jpg", b"1")], None)


def test_signed_checksum():
    data = make_tar([("é.jpg", b"1")])
    block = bytearray(data[:512])
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % signed
    assert read_all(bytes(block) + data[512:]) == ([("é.jpg", b"1")], None)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"-0000000001\0", b"notanumber!\0", b"\x80" + b"\xff" * 11])
def test_impossible_size_is_a_bad_header(size):
    found, error = read_all(set_header(make_tar([("a.jpg", b"1")]), 0, 124, size))
    assert (found, error.damage) == ([], Damage.UNREADABLE)


def test_pax_size_overrides():
    data = make_tar([("a.jpg", b"12345")])
    record = b"9 size=5\n"
    extension = set_header(make_tar([("pax", record)]), 0, 156, b"x")[:1024]
    broken = set_header(data, 0, 124, b"00000000000\0")
    assert read_all(extension + broken) == ([("a.jpg", b"12345")], None)


@pytest.mark.parametrize("record", [b"99 size=5\n", b"no-space\n", b"9 size+5\n", b"9 size=x\n", b"12 size=-5\n\n"])
def test_bad_pax_header(record):
    extension = set_header(make_tar([("pax", record)]), 0, 156, b"x")[:1024]
    found, error = read_all(make_tar([("a", b"")])[:512] + extension + make_tar(MEMBERS))
    assert (found, error.damage) == ([("a", b"")], Damage.TRUNCATED)


def test_links_and_devices_are_met_but_are_no_files():
    buffer = io.BytesIO()
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in [*kinds, tarfile.DIRTYPE, tarfile.REGTYPE]:
            member = tarfile.TarInfo(f"{kind.decode()}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    entries = list(TarReader(io.BytesIO(buffer.getvalue())))
    assert [(entry.name, entry.is_file) for entry in entries] == [
        *((f"{kind.decode()}.jpg", False) for kind in kinds),
        ("0.jpg", True),
    ]


def test_archives_laid_end_to_end_are_all_read():
    data = make_tar(MEMBERS[:2]) + make_tar(MEMBERS[2:])
    assert read_all(data) == (MEMBERS, None)


def test_empty_archive_and_one_zero_block():
    assert read_all(bytes(10240)) == ([], None)
    assert read_all(make_tar(MEMBERS)[: 4096 + 512]) == (MEMBERS, None)


def test_zeroed_header_in_the_middle_is_noticed():
    data = make_tar(MEMBERS)
    found, error = read_all(data[:1536] + bytes(512) + data[2048:])
    assert found == MEMBERS[:1]
    assert error.damage is Damage.TRUNCATED
    assert error.message == "members at byte 2048 follow an end-of-archive marker"


def test_members_behind_a_hole_are_distrusted():
    data = make_tar(MEMBERS)
    found, error = read_all(data[:1536] + bytes(1024) + data[2560:])
    assert found == MEMBERS[:1]
    assert error.message == "members at byte 2560 follow an end-of-archive marker"


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 512, b"\x89PNG" + bytes(600)])
def test_not_a_tar_is_unreadable(data):
    found, error = read_all(data)
    assert (found, error.damage) == ([], Damage.UNREADABLE)


def test_every_cut_is_noticed_and_keeps_the_whole_members_before_it():
    data = make_tar(MEMBERS)
    ends = [entry.offset + entry.size for entry in TarReader(io.BytesIO(data))]
    last_block = -(-ends[-1] // 512) * 512
    for cut in range(last_block + 512):
        found, error = read_all(data[:cut])
        assert found == MEMBERS[: len(found)]
        assert len(found) in (sum(end <= cut for end in ends), sum(end <= cut for end in ends) - 1)
        assert error.damage is (Damage.TRUNCATED if cut >= 512 else Damage.UNREADABLE)
    for cut in range(last_block + 512, len(data), 512):
        assert read_all(data[:cut]) == (MEMBERS, None)


SOUND = make_tar([*MEMBERS, (LONG, b"z" * 100)], tarfile.PAX_FORMAT)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@example([(124, 0x80), (130, 0xFF)])
def test_flipped_bytes_never_crash_and_never_lose_a_member_silently(flips):
    data = bytearray(SOUND)
    for place, value in flips:
        data[place] = value
    found, error = read_all(bytes(data))
    assert error is not None or len(found) == len(MEMBERS) + 1
