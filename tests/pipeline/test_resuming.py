import io

import pytest

from pipeline import remote
from pipeline.remote import retry
from pipeline.resuming import ResumingFile


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0)


class Flaky(io.BytesIO):
    """A file whose connection breaks at each of some bytes, once."""

    breaks: set[int]

    def read(self, size=-1):
        hit = next((place for place in self.breaks if self.tell() <= place < self.tell() + size), None)
        if hit is not None:
            self.breaks.remove(hit)
            super().read(hit - self.tell())
            raise ConnectionResetError
        return super().read(size)


def open_flaky(data, breaks, opened):
    def open_file():
        file = Flaky(data)
        file.breaks = breaks
        opened.append(file)
        return file

    return ResumingFile(open_file)


def test_reading_goes_on_at_the_same_byte():
    data, opened = bytes(range(256)), []
    file = open_flaky(data, {0, 70, 71, 72, 200}, opened)
    assert b"".join(iter(lambda: file.read(10), b"")) == data
    assert (file.tell(), len(opened), file.failed) == (256, 6, False)
    file.close()
    assert all(each.closed for each in opened)


def test_seeking():
    file = open_flaky(bytes(range(100)), {50}, [])
    assert (file.seek(50), file.read(2), file.seek(-1, io.SEEK_END), file.read(5)) == (50, b"23", 99, b"c")


def test_a_store_that_keeps_failing_raises_its_own_error():
    file = open_flaky(b"x" * 100, {0, 1, 2, 3}, [])
    with pytest.raises(ConnectionResetError):
        file.read(10)
    assert file.failed


def count_calls(error, succeed_at):
    calls = []

    def action():
        calls.append(1)
        if len(calls) < succeed_at:
            raise error
        return len(calls)

    return action, calls


def test_retry():
    assert retry(count_calls(OSError(), 4)[0]) == 4
    action, calls = count_calls(OSError("down"), 5)
    with pytest.raises(OSError, match="down"):
        retry(action)
    assert len(calls) == 4


def test_a_missing_file_is_not_asked_for_again():
    action, calls = count_calls(FileNotFoundError(), 2)
    with pytest.raises(FileNotFoundError):
        retry(action)
    assert len(calls) == 1
