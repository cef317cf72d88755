"""What is new, changed or gone since a snapshot, and what becomes of it."""

import pytest

from operators.errors import LimitExceeded
from pipeline.artifact import Artifact
from pipeline.embed import samples_id, shards_read
from pipeline.nightly.settings import NightlySettings
from pipeline.nightly.shards import Shards, compare_shards
from pipeline.parts import Part
from pipeline.pool import Pool, Shard
from pipeline.stream.finalise import damaged_id

POOL = Pool.model_validate({"format": "webdataset", "path": "/pool/*.tar"})


def shards(**contents):
    return [Shard(f"{name}.tar", f"/pool/{name}.tar", 0, 1, content) for name, content in sorted(contents.items())]


def ids(**contents):
    return {shard.name: samples_id(POOL, shard) for shard in shards(**contents)}


def compare(there, known, left_out=None, **settings):
    return compare_shards(POOL, shards(**there), ids(**known), NightlySettings(**settings), ids(**(left_out or {})))


def test_nothing_new():
    found = compare({"a": "1", "b": "2"}, {"a": "1", "b": "2"})
    assert not found.differ
    assert [shard.name for shard in found.used] == ["a.tar", "b.tar"]


def test_a_shard_that_could_not_be_read_is_no_news_until_it_is_another():
    """Its part has an address of its own, so that every run tries it again."""
    (own,) = ids(b="2").values()
    damaged = {"id": damaged_id(own, "unreadable", 0), "notes": {"damage": "unreadable"}}
    rest = {"path": "", "rows": 0, "size": 0, "sha256": ""}
    parts = [Part("a.tar", *ids(a="1").values(), **rest), Part("b.tar", **damaged, **rest)]
    samples = Artifact("samples", "samples/0", tuple(parts))
    assert shards_read(samples, ids(a="1", b="2")) == ids(a="1", b="2")
    assert shards_read(samples, ids(a="1", b="X"))["b.tar"] == damaged["id"]


def test_new_changed_and_vanished():
    found = compare({"a": "1", "b": "X", "d": "4"}, {"a": "1", "b": "2", "c": "3"}, changed="leave_out")
    assert (found.new, found.changed, found.vanished) == (["d.tar"], ["b.tar"], ["c.tar"])
    assert [shard.name for shard in found.used] == ["a.tar", "d.tar"]
    assert found.left_out == ids(b="X")


def test_a_changed_shard_as_new():
    found = compare({"a": "1", "b": "X"}, {"a": "1", "b": "2"}, changed="as_new")
    assert (found.new, found.changed, dict(found.left_out)) == (["b.tar"], ["b.tar"], {})


@pytest.mark.parametrize("changed", ["stop", "leave_out"])
def test_what_was_left_out_stays_out_and_is_no_news(changed):
    found = compare({"a": "1", "b": "X"}, {"a": "1"}, {"b": "X"}, changed=changed)
    assert not found.differ
    assert found.left_out == ids(b="X")


def test_what_was_left_out_and_changes_again_is_news():
    found = compare({"a": "1", "b": "Y"}, {"a": "1"}, {"b": "X"})
    assert found.changed == ["b.tar"]


def test_what_was_left_out_may_come_in():
    found = compare({"a": "1", "b": "X"}, {"a": "1"}, {"b": "X"}, changed="as_new")
    assert (found.new, found.changed) == (["b.tar"], ["b.tar"])


def test_a_stop_names_shards_and_settings():
    found = Shards([], (), [f"{i}.tar" for i in range(7)], ["gone.tar"])
    with pytest.raises(LimitExceeded) as stopped:
        found.check(NightlySettings(), 4)
    first, second = str(stopped.value).splitlines()
    assert first.startswith(
        "no shard may have changed since snapshot 4 (nightly.changed), got 7: 0.tar, 1.tar, 2.tar, 3.tar, 4.tar and 2 "
        "more; restore them, or set nightly.changed to leave_out"
    )
    assert "no shard may have vanished since snapshot 4 (nightly.vanished), got 1: gone.tar" in second
    assert stopped.value.exit_code == 3
    found.check(NightlySettings(changed="as_new", vanished="leave_out"), 4)
