"""The samples that came and went between two ledgers of a shard."""

import hashlib

import pyarrow as pa
import pytest

from operators.errors import DamagedError
from pipeline.artifact import Artifact
from pipeline.ledger_writer import ShardVerdicts
from pipeline.nightly import diff
from pipeline.nightly.diff import DIFF_SCHEMA, Pair, Side, _earlier_rows, compare_rows, find_pairs
from pipeline.parts import Part
from pipeline.storage import Store

DROPPED = ("dropped", "prune", "over_quota")


def ledger(**fates):
    """A shard's rows: key -> kept, or (verdict, step, reason)."""
    rows = [
        (f"{key:>032}", "s.tar", key, *(("kept", None, None) if fate == "kept" else fate))
        for key, fate in fates.items()
    ]
    names = ("uid", "shard", "key", "verdict", "step", "reason")
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})


def changes(before, after, gone=""):
    table = compare_rows(before, after, gone)
    assert table.schema == DIFF_SCHEMA
    return [(row["key"], row["change"], row["step"], row["reason"]) for row in table.to_pylist()]


def test_a_new_shard():
    assert changes(None, ledger(a="kept", b=DROPPED)) == [("a", "added", None, None)]


def test_a_shard_judged_anew():
    before = ledger(a="kept", b="kept", c=DROPPED)
    assert changes(before, ledger(a="kept", b=DROPPED, c="kept")) == [
        ("c", "added", None, None),
        ("b", "removed", "prune", "over_quota"),
    ]


@pytest.mark.parametrize("reason", ["shard_vanished", "shard_changed"])
def test_a_shard_that_is_gone(reason):
    assert changes(ledger(a="kept", b=DROPPED), None, reason) == [("a", "removed", None, reason)]


def test_a_shard_read_anew_without_one_of_its_samples():
    assert changes(ledger(a="kept", b="kept"), ledger(b="kept", c="kept")) == [
        ("c", "added", None, None),
        ("a", "removed", None, "shard_changed"),
    ]


def test_a_key_that_came_twice_counts_by_the_one_that_was_kept():
    twice = pa.concat_tables([ledger(a="kept"), ledger(a=("rejected", "samples", "duplicate_uid"))])
    assert changes(twice, ledger(a="kept")) == []


def side(**masks):
    parts = {name: Part(f"{name}.tar", f"id-{name}", f"x/{name}", 1, 1, "") for name in masks}
    samples = Artifact("samples", "samples/x", tuple(parts.values()))
    verdicts = [Part(f"{name}.tar", f"v-{name}", f"y/{name}", 1, 1, "", mask=mask) for name, mask in masks.items()]
    return Side(samples, [Artifact("unique_uid", "unique_uid/x", tuple(verdicts))])


def test_only_shards_whose_kept_samples_differ_are_looked_at():
    before, after = side(a="1", b="2", c="3"), side(a="1", b="X", d="4")
    pairs = find_pairs(before, after, {"c.tar": "shard_vanished"})
    found = [(pair.before and pair.before.samples, pair.after and pair.after.samples, pair.gone) for pair in pairs]
    assert found == [("x/b", "x/b", ""), ("x/c", None, "shard_vanished"), (None, "x/d", "")]
    assert len(find_pairs(None, after, {})) == 3
    assert before.ledger != after.ledger


def test_two_snapshots_may_differ_between_the_same_ledgers(tmp_path, monkeypatch):
    """A shard that had changed, then, after a rollback, was gone."""
    monkeypatch.setattr(diff, "ledger_rows", lambda store, seed, steps, unit: ledger(a="kept"))
    store, unit = Store(str(tmp_path)), ShardVerdicts("samples.parquet", ())
    written = [
        diff._write(store, ("snapshots/diff-x/00000", [Pair(unit, None, gone)]))[0]
        for gone in ("shard_changed", "shard_vanished", "shard_changed")
    ]
    assert written[0] == written[2] != written[1]
    for file in written:
        assert hashlib.sha256(store.read(file.path)).hexdigest() == file.sha256


def test_a_shard_whose_earlier_verdicts_were_lost_is_as_new(tmp_path):
    store, unit = Store(str(tmp_path)), ShardVerdicts("samples.parquet", (("prune", "prune.parquet"),))
    for name in (unit.samples, "prune.parquet"):
        store.replace(name, b"damaged")
    with pytest.raises(DamagedError):
        _earlier_rows(store, unit)
    store.remove(unit.samples)
    assert _earlier_rows(store, unit) is None
    assert _earlier_rows(store, None) is None
