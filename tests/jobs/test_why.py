"""`winnow why` on a ledger written by hand."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.main import main
from pipeline.ledger import SCHEMA
from pipeline.storage import Store

KEPT, PRUNED, TWICE = "a" * 32, "ab" * 16, "c" * 32
ROWS = [
    (KEPT, "0.tar", "k1", "kept", None, None, {"rules": {"side": 224, "words": 7}, "prune": {"similarity": 0.5}}),
    (PRUNED, "0.tar", "k2", "dropped", "prune", "over_quota", {"cluster": 12, "quota": 1500, "similarity": 0.98765}),
    (TWICE, "1.tar", "k3", "dropped", "exact_dedup", "exact_duplicate", {"duplicate_of": KEPT}),
    (TWICE, "2.tar", "k4", "rejected", "samples", "duplicate_uid", {"first_row": 0, "first_shard": "1.tar"}),
]


@pytest.fixture
def workspace(tmp_path):
    files = []
    for prefix in "ac":
        rows = [(*row[:6], json.dumps(row[6], sort_keys=True)) for row in ROWS if row[0].startswith(prefix)]
        path = f"ledger/{prefix}-0.parquet"
        (tmp_path / "ledger").mkdir(exist_ok=True)
        table = pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)
        pq.write_table(table, tmp_path / path)
        files.append({"prefix": prefix, "path": path, "rows": len(rows)})
    (tmp_path / "ledger.json").write_text(json.dumps({"digest": "0", "digits": 1, "files": files}))
    return str(tmp_path)


def ask(workspace, uid, capsys):
    code = main(["why", workspace, uid])
    printed = capsys.readouterr()
    return code, printed.out if code == 0 else printed.err


def test_dropped(workspace, capsys):
    code, text = ask(workspace, PRUNED.upper(), capsys)
    assert code == 0
    assert text.splitlines() == [
        f"{PRUNED} dropped by prune: over_quota",
        "  shard       0.tar",
        "  key         k2",
        "  cluster     12",
        "  quota       1,500",
        "  similarity  0.9877",
    ]


def test_kept_shows_the_numbers_of_every_step(workspace, capsys):
    code, text = ask(workspace, KEPT, capsys)
    assert code == 0
    assert text.splitlines() == [
        f"{KEPT} kept",
        "  shard             0.tar",
        "  key               k1",
        "  prune.similarity  0.5",
        "  rules.side        224",
        "  rules.words       7",
    ]


def test_a_uid_supplied_twice_has_two_answers(workspace, capsys):
    code, text = ask(workspace, TWICE, capsys)
    first, second = text.split("\n\n")
    assert code == 0
    assert first.splitlines()[0] == f"{TWICE} dropped by exact_dedup: exact_duplicate"
    assert first.splitlines()[-1] == f"  duplicate_of  {KEPT}"
    assert second.splitlines()[0] == f"{TWICE} rejected: duplicate_uid"
    assert second.splitlines()[-1] == "  first_shard  1.tar"


@pytest.mark.parametrize("uid", ["a" * 31 + "0", "f" * 32])
def test_unknown(workspace, capsys, uid):
    code, text = ask(workspace, uid, capsys)
    assert (code, text) == (2, f"winnow: UID must be one that {workspace} knows: no sample has uid {uid}\n")


@pytest.mark.parametrize("uid", ["a", "", "a" * 33, "g" * 32, "a" * 31 + "\u0661"])
def test_malformed(workspace, capsys, uid):
    assert ask(workspace, uid, capsys) == (2, f"winnow: UID must be 32 hexadecimal digits, got {uid!r}\n")


def test_a_workspace_that_needs_options(monkeypatch):
    opened = []
    monkeypatch.setattr("jobs.why.find_rows", lambda store, uid: opened.append(store) or [])
    options = ["--storage", "endpoint_url=http://host:1", "--storage", "anon=true"]
    assert main(["why", "s3://bucket/work", KEPT, *options]) == 2
    assert opened == [Store("s3://bucket/work", {"endpoint_url": "http://host:1", "anon": True})]


@pytest.mark.parametrize("option", ["anon", "=1", "a={"])
def test_malformed_options(workspace, capsys, option):
    assert main(["why", workspace, KEPT, "--storage", option]) == 2
    assert capsys.readouterr().err.startswith("winnow: --storage must be KEY=VALUE")


def test_no_workspace(tmp_path, capsys):
    code, text = ask(str(tmp_path), KEPT, capsys)
    assert code == 2
    assert text == f"winnow: {tmp_path} must be the workspace of a finished run, got no ledger.json in it\n"
