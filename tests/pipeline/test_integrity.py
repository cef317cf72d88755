"""Seals, checksums and the errors of reading, without Ray."""

import errno
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import DamagedError
from pipeline import integrity
from pipeline.integrity import damaged, damaged_file, read_arrays, read_sealed, reading, sealed, unseal, what_is_wrong
from pipeline.storage import Store

RECORD = {"b": [1, 2.5, None], "a": {"é": "x"}}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_a_seal_is_part_of_the_json_and_notices_every_bit():
    data = sealed(RECORD)
    assert json.loads(data).pop("seal")
    assert unseal(data) == RECORD
    assert unseal(json.dumps(RECORD).encode()) == RECORD  # of an older version
    changed = 0
    for place in range(len(b'{\n "seal": "'), len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            try:
                assert unseal(bytes(broken)) != RECORD or broken[place : place + 1].isspace()
            except ValueError:
                changed += 1
    assert changed > 7 * (len(data) - 30)


def test_an_error_says_which_file_and_what_is_wrong(store):
    error = damaged(store, "step/h/part.json", "line one\n  line two")
    assert damaged_file(store, error) == "step/h/part.json"
    assert what_is_wrong(error) == "line one line two"
    assert damaged_file(Store("/elsewhere"), error) is None
    assert f"`winnow verify {store.url} --repair`" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file", "x"),
        OSError("could not verify page integrity, CRC checksum verification failed"),
        OSError(errno.EIO, "Input/output error"),
        pa.ArrowInvalid("cut"),
        EOFError("no data"),
        KeyError("kept"),
    ],
)
def test_what_a_content_leads_to_is_damage(store, error):
    with pytest.raises(DamagedError, match=r"^x must be what was written into "), reading(store, "x"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "denied"),
        PermissionError("The provided token has expired."),  # as s3fs says it
        ConnectionResetError("reset"),
        TimeoutError("slow"),
        OSError(errno.EMFILE, "too many open files"),
        MemoryError(),
    ],
)
def test_what_a_store_does_is_not(store, error):
    with pytest.raises(type(error)), reading(store, "x"):
        raise error


def test_what_a_disk_says_of_a_content_a_store_says_of_a_request(store):
    error = OSError(errno.EINVAL, "Invalid argument")
    with pytest.raises(DamagedError), reading(store, "x"):
        raise error
    with pytest.raises(OSError, match="Invalid argument"), reading(Store("memory://w"), "x"):
        raise error


def test_arrays_notice_a_flipped_bit(store):
    sink = io.BytesIO()
    np.savez(sink, a=np.arange(64))
    store.replace("a.npz", sink.getvalue())
    assert read_arrays(store, "a.npz")["a"].sum() == 2016
    data = bytearray(sink.getvalue())
    data[len(data) // 2] ^= 1
    store.replace("a.npz", bytes(data))
    with pytest.raises(DamagedError, match=r"^a.npz must be"):
        read_arrays(store, "a.npz")


def test_what_is_no_json_or_not_there(store):
    store.replace("x.json", b"{")
    with pytest.raises(DamagedError, match=r"^x.json must be"):
        read_sealed(store, "x.json")
    with pytest.raises(FileNotFoundError):
        read_sealed(store, "y.json")


def test_columns_come_in_the_order_asked_for_also_behind_a_long_footer(monkeypatch):
    sink = io.BytesIO()
    table = pa.table({"a": [1, 2], "b": [{"a": 3}, None], "c": ["x", "y"]})
    pq.write_table(table, sink, write_page_checksum=True)
    assert integrity.read_parquet(sink, "x.parquet", ["c", "b"]).equals(table.select(["c", "b"]))
    monkeypatch.setattr(integrity, "_TAIL_BYTES", 16)
    assert integrity.read_parquet(sink, "x.parquet").equals(table)
    path = f"x-{integrity.footer_checksum(sink)}.parquet"
    assert integrity.read_parquet(sink, path).equals(table)
    with pytest.raises(ValueError, match="a footer that is not the one written"):
        integrity.read_parquet(sink, "x-00000000.parquet")
