import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.artifact import Artifact
from pipeline.parts import Part
from pipeline.storage import Store
from pipeline.summary import Export, print_summary, summarise, write_summary

EXPORT = Export("uids", "out.npy", samples=3, files=1, bytes=400, seconds=0.5, reused=True)


def artifact(step: str, *counts: dict, reused: bool = True, damage: str = "", shards: str = "ab") -> Artifact:
    parts = tuple(
        Part(
            f"{shard}.tar",
            shard,
            "",
            count["in"],
            0,
            "",
            count,
            notes={"damage": "truncated", "message": "ends early"} if shard == damage else {},
        )
        for shard, count in zip(shards, counts, strict=True)
    )
    rows_new = 0 if reused else sum(count["in"] for count in counts)
    return Artifact(step, step, parts, reused=reused, seconds=1.25, rows_new=rows_new)


@pytest.fixture
def run(tmp_path):
    samples = artifact(
        "samples", {"in": 4, "kept": 3, "uid_supplied": 2}, {"in": 2, "kept": 2, "uid_invalid": 1}, damage="b"
    )
    unique = artifact(
        "unique_uid", {"in": 4, "kept": 3, "dropped:missing_text": 1}, {"in": 2, "kept": 1, "dropped:duplicate_uid": 1}
    )
    rules = artifact("rules", {"in": 3, "kept": 2, "dropped:min_side": 1}, {"in": 1, "kept": 1}, reused=False)
    artifacts = {item.step: item for item in (samples, unique, rules)}
    return SimpleNamespace(store=Store(str(tmp_path)), samples=samples, verdicts=[unique, rules], artifacts=artifacts)


def test_the_sums(run):
    summary = summarise(run, [EXPORT])
    assert (summary.samples_seen, summary.kept) == (6, 3)
    assert summary.rejected == {"duplicate_uid": 1, "missing_text": 1}
    assert summary.dropped == {"rules": {"min_side": 1}}
    assert summary.shards_damaged == {"b.tar": {"reason": "truncated", "message": "ends early"}}
    assert summary.uids == {"supplied": 2, "invalid": 1}
    assert [(step.name, step.rows_in, step.rows_out) for step in summary.steps] == [
        ("samples", 6, 5),
        ("unique_uid", 6, 4),
        ("rules", 4, 3),
    ]
    assert not summary.reused


def test_a_sum_that_does_not_add_up_is_a_broken_invariant(run):
    run.verdicts = [run.verdicts[0], artifact("rules", {"in": 3, "kept": 2}, {"in": 1, "kept": 1})]
    with pytest.raises(AssertionError, match="6 samples seen, 3 kept"):
        summarise(run, [])


def test_it_is_written_unless_nothing_was_done(run, tmp_path):
    write_summary(run, summarise(run, [EXPORT]))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert set(written) >= {
        "samples_seen",
        "kept",
        "dropped",
        "rejected",
        "shards_damaged",
        "steps",
        "exports",
        "workspace",
    }
    rules = {"name": "rules", "rows_in": 4, "rows_out": 3, "rows_new": 4, "seconds": 1.25, "reused": False}
    assert written["steps"][2] == rules
    run.artifacts["rules"] = replace(run.artifacts["rules"], reused=True, rows_new=0, seconds=9.0)
    write_summary(run, summarise(run, [EXPORT]))
    assert json.loads((tmp_path / "summary.json").read_text()) == written


def test_it_is_written_where_less_was_asked_for(run, tmp_path):
    write_summary(run, summarise(run, [EXPORT]))
    run.artifacts["rules"] = replace(run.artifacts["rules"], reused=True)
    write_summary(run, summarise(run, []))
    assert json.loads((tmp_path / "summary.json").read_text())["exports"] == []
    del run.artifacts["rules"]
    write_summary(run, summarise(run, []))
    assert len(json.loads((tmp_path / "summary.json").read_text())["steps"]) == 2


def test_what_is_printed(run, capsys, tmp_path):
    print_summary(summarise(run, [EXPORT]))
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["samples", "6", "5", "reused"],
        ["unique_uid", "6", "4", "reused"],
        ["rules", "4", "3", "1.2", "s"],
        ["export", "uids", "3", "3", "reused"],
    ]
    assert rest.splitlines() == [
        "6 samples seen = 3 kept + 1 dropped + 2 rejected",
        "damaged shard: b.tar (truncated: ends early)",
        f"workspace: {tmp_path} (summary.json, ledger/, report.html)",
    ]


def test_where_less_than_all_was_new_the_table_says_how_much(run, capsys):
    run.artifacts["rules"] = replace(run.artifacts["rules"], rows_new=1)
    print_summary(summarise(run, [EXPORT]))
    table = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert table[0].split() == ["step", "rows", "in", "new", "rows", "out", "time"]
    assert [line.split() for line in table[4:]] == [
        ["rules", "4", "1", "3", "1.2", "s"],
        ["export", "uids", "3", "-", "3", "reused"],
    ]
