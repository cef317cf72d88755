"""Snapshots as files: what is current, what cannot be overwritten."""

import pytest

from operators.errors import DamagedError, WorkspaceError
from pipeline.integrity import sealed
from pipeline.snapshots import CURRENT, History, make_current, path_of, publish_snapshot, read_history, read_snapshot
from pipeline.storage import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def snapshot(number, **facts):
    return {"format_version": 1, "id": number, **facts}


def test_none(store):
    assert read_history(store) == History()
    assert read_history(store).next == 1
    with pytest.raises(WorkspaceError, match=r"snapshot must be one of .* \(there: none\), got 3"):
        read_snapshot(store, 3)


def test_the_latest_is_current_until_another_is_chosen(store):
    for number in (1, 2, 3):
        publish_snapshot(store, snapshot(number))
    assert read_history(store) == History((1, 2, 3), 3)
    make_current(store, 1)
    assert read_history(store) == History((1, 2, 3), 1)
    assert read_history(store).next == 4
    publish_snapshot(store, snapshot(4))
    assert read_history(store) == History((1, 2, 3, 4), 4)
    with pytest.raises(WorkspaceError, match=r"there: 1 to 4\), got 9"):
        read_snapshot(store, 9)


@pytest.mark.parametrize("pointed_at", [None, 1])
def test_a_snapshot_is_current_before_the_pointer_says_so(store, pointed_at):
    publish_snapshot(store, snapshot(1))
    if pointed_at is None:
        store.remove(CURRENT)
    store.publish(path_of(2), sealed(snapshot(2)))
    assert read_history(store) == History((1, 2), 2, pointed=False)


def test_a_snapshot_is_never_replaced(store):
    publish_snapshot(store, snapshot(1, ledger="a"))
    publish_snapshot(store, snapshot(1, ledger="a"))
    with pytest.raises(WorkspaceError, match=r"0001\.json must not be there before its night"):
        publish_snapshot(store, snapshot(1, ledger="b"))
    assert read_snapshot(store, 1)["ledger"] == "a"


def test_a_changed_snapshot_is_noticed(store):
    publish_snapshot(store, snapshot(1, ledger="a"))
    store.replace(path_of(1), store.read(path_of(1)).replace(b'"a"', b'"b"'))
    with pytest.raises(DamagedError, match=r"^snapshots/0001\.json must be what was written"):
        read_snapshot(store, 1)
