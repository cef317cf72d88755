import errno
import multiprocessing
import os
import pickle
import tempfile
import time
from pathlib import Path

import pytest

from operators.errors import WorkspaceError
from pipeline import local_files
from pipeline.local_files import file_sha256
from pipeline.storage import Store, digest, explain_write_errors, to_json


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "work"))


@pytest.fixture
def memory():
    store = Store("memory://winnow-test")
    yield store
    store.remove("")


def names(store) -> list[str]:
    return sorted(str(path.relative_to(store.path())) for path in Path(store.path()).rglob("*") if path.is_file())


def test_a_name_is_published_once(store):
    assert store.publish("a/b.json", b"one")
    assert store.publish("a/b.json", b"one"), "the same content is the same win"
    assert not store.publish("a/b.json", b"two")
    assert store.read("a/b.json") == b"one"
    assert names(store) == ["a/b.json"]


def test_a_name_is_replaced_whole(store, memory):
    for place in (store, memory):
        place.replace("a/b.json", b"one")
        place.replace("a/b.json", b"two")
        assert place.read("a/b.json") == b"two"
        assert place.find("") == {"a/b.json": 3}


def test_of_many_writers_exactly_one_wins(store):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.starmap(publish, [(store, number) for number in range(16)])
    assert sum(won) == 1
    assert store.read("name") == b"%d" % won.index(True)
    assert names(store) == ["name"]


def publish(store: Store, number: int) -> bool:
    return store.publish("name", b"%d" % number)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV])
def test_a_file_system_without_hard_links(store, monkeypatch, number):
    def no_links(*args, **kwargs):
        raise OSError(number, "no links here")

    monkeypatch.setattr(local_files.os, "link", no_links)
    assert store.publish("a", b"one")
    assert store.publish("a", b"one")
    assert not store.publish("a", b"two")
    assert names(store) == ["a"]


def test_without_hard_links_a_name_never_holds_half_a_file(store, monkeypatch):
    def no_links(*args):
        raise OSError(errno.ENOSYS, "no links here")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(local_files.os, "link", no_links)
    with monkeypatch.context() as kill:
        kill.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            store.publish("a", b"one")
    assert names(store) == []
    assert store.publish("a", b"two")
    assert store.read("a") == b"two"


def test_without_hard_links_exactly_one_of_many_writers_wins(store):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.starmap(publish_without_links, [(store, number) for number in range(16)])
    assert sum(won) == 1
    assert store.read("name") == b"%d" % won.index(True)


def publish_without_links(store: Store, number: int) -> bool:
    with store.scratch("") as scratch:
        scratch.write_bytes(b"%d" % number)
        return local_files._rename_exclusively(scratch, Path(store.path("name")))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("call", ["publish", "replace", "check_writable"])
def test_a_refused_write_leaves_nothing_and_names_the_folder(store, monkeypatch, call, number):
    store.replace("there", b"before")

    def refuse(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    arguments = () if call == "check_writable" else ("there" if call == "replace" else "new", b"content")
    with pytest.raises(WorkspaceError) as caught:
        getattr(store, call)(*arguments)
    assert str(caught.value) == f"{store.url} must be a folder that can be written to, got: {os.strerror(number)}"
    assert names(store) == ["there"]
    assert store.read("there") == b"before"


def test_other_errors_keep_their_own_words():
    with pytest.raises(TimeoutError), explain_write_errors("w"):
        raise TimeoutError
    with (
        pytest.raises(WorkspaceError, match="w must be a folder that can be written to, got: No space left"),
        explain_write_errors("w"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_scratch_file_is_gone_whatever_happens(store):
    with store.scratch("a") as scratch:
        scratch.write_bytes(b"one")
        assert store.publish_file(scratch, "a/b")
    with pytest.raises(IsADirectoryError), store.scratch("a") as scratch:
        scratch.write_bytes(Path(store.path()).read_bytes())
    assert names(store) == ["a/b"]
    assert store.read("a/b") == b"one"


def test_reading(store):
    store.publish_json("a.json", {"b": [1, "\u00e9"], "a": None})
    assert store.read("a.json") == '{\n "a": null,\n "b": [\n  1,\n  "\u00e9"\n ]\n}\n'.encode()
    assert store.read_json("a.json") == {"a": None, "b": [1, "\u00e9"]}
    with store.open("a.json") as file:
        file.seek(1)
        assert file.read(2) == b"\n "
    store.replace("no.json", b"{half")
    with pytest.raises(WorkspaceError, match=r"work/no.json must be JSON, got "):
        store.read_json("no.json")
    with pytest.raises(FileNotFoundError):
        store.read("nothing")


def test_finding_and_removing(store):
    assert store.find("a") == {}
    for name in ("a/2", "a/1/3", "b"):
        store.replace(name, name.encode())
    assert store.find("a") == {"a/1/3": 5, "a/2": 3}
    assert store.exists("b")
    store.remove("a")
    store.remove("a")
    assert store.find("") == {"b": 1}
    assert not store.exists("a/2")


def test_what_a_folder_holds_and_moving_it(store, memory, tmp_path):
    for place in (store, memory):
        assert place.names("a") == []
        for name in ("a/2", "a/1/3", "b"):
            place.replace(name, name.encode())
        assert (place.names("a"), place.names("")) == (["1", "2"], ["a", "b"])
        assert (place.size("a/1/3"), abs(place.modified("b") - time.time()) < 3600) == (5, True)
        place.move("a/2", "away/a/2")
        place.move("b", "away/a/2")
        assert place.find("") == {"a/1/3": 5, "away/a/2": 1}
        (tmp_path / "scratch").write_bytes(b"new")
        place.replace_file(tmp_path / "scratch", "a/1/3")
        assert place.read("a/1/3") == b"new"
        with pytest.raises(FileNotFoundError):
            place.size("b")


def test_what_cannot_be_looked_at_is_not_taken_for_missing(store, monkeypatch):
    """As behind a shared disk that has hung up: the files are all there."""
    store.replace("a/b", b"1")

    def fail(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.exists("a/b")
    monkeypatch.undo()
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.find("a", pass_closed=True)


def test_folders_that_are_closed_to_us(store, monkeypatch):
    store.replace("a/b", b"1")
    store.replace("c", b"1")
    scan = os.scandir

    def closed(path):
        if str(path).endswith("/a"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert store.find("", pass_closed=True) == {"c": 1}
    with pytest.raises(PermissionError):
        store.find("")


def test_links_are_found_and_not_followed(store, tmp_path):
    store.replace("a/b", b"12")
    for name, target in (("file", "a/b"), ("folder", "a"), ("here", "."), ("itself", "itself"), ("nothing", "x")):
        (tmp_path / "work" / name).symlink_to(target)
    found = store.find("")
    assert list(found) == ["a/b", "file", "folder", "here", "itself", "nothing"]
    assert found["a/b"] == found["file"] == 2
    assert store.find("a/b") == {"a/b": 2}
    assert store.find("a/b/c") == {}
    assert not store.exists("a/b/c")


@pytest.mark.parametrize("url", ["memory://bucket/run[1]", "memory://bucket/*/w"])
def test_a_store_in_which_other_names_would_be_meant_is_refused(url):
    with pytest.raises(WorkspaceError, match=r"must hold none of \* \? \[ in a store"):
        Store(url).remove("a")


def test_a_full_temporary_folder_is_what_is_named(memory):
    said = f"^{tempfile.gettempdir()} must be a folder that can be written to, got"
    with pytest.raises(WorkspaceError, match=said), memory.scratch("a"):
        raise OSError(errno.ENOSPC, "full")


def test_the_root_is_writable_or_not(store, tmp_path):
    store.check_writable()
    assert names(store) == []
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(WorkspaceError, match=f"{place} must be a folder that can be written to, got: "):
            Store(str(tmp_path / place)).check_writable()
    with pytest.raises(WorkspaceError, match="gopher://a must have a protocol that fsspec can open"):
        Store("gopher://a").check_writable()


def test_equal_values_have_equal_digests():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    different = [(), (None,), (1,), ("1",), ([1],), (1, 2), ([1, 2],), ("\ud800",)]
    assert len({digest(*values) for values in different}) == len(different)
    assert len(digest()) == 16
    assert to_json({"b": 1, "a": 2}) == to_json({"a": 2, "b": 1})


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_store_is_a_key_and_travels(store):
    assert pickle.loads(pickle.dumps(store)) == store  # noqa: S301 (our own object)
    assert hash(Store("s3://a", {"key": "x"})) == hash(Store("s3://a", {"key": "x"}))
