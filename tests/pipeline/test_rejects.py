"""What is exported of rejected samples, of a hostile tar, without Ray."""

import csv
import io
import tarfile

import pyarrow as pa
import pytest

from operators.errors import InputError
from pipeline import rejects
from pipeline.artifact import Artifact, publish_part
from pipeline.listing import list_shards
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.readers import read_shard
from pipeline.readers.sample import ShardEnd
from pipeline.rejects import check_reason, export_rejects, largest_shards
from pipeline.run import Run
from pipeline.storage import Store
from pipeline.stream.work import SAMPLES_SCHEMA
from tests.small_pools import jpeg

MEMBERS = [
    ("1.jpg", jpeg(1)),
    ("1.txt", b"sound"),
    ("=2+2.jpg", b"no image"),
    ("=2+2.txt", b"but a text"),
    ("=2+2.a\nb", b"a member of its own kind"),
    ("3.jpg", jpeg(3)),
    ("3.json", b"{not json"),
    ("../../4.jpg", jpeg(4)),
    ("5.jpg", b"x" * 5000),
    ("5.txt", b"large"),
    ("6.txt", b"no image here"),
]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run over one tar whose samples are judged as reading judges them, and `=2+2` as decoding does."""
    monkeypatch.setattr(rejects, "spread", lambda work, units, workers: [work(unit) for unit in units])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in MEMBERS:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    pool = Pool.model_validate({"format": "webdataset", "path": f"{tmp_path}/a.tar", "max_member_bytes": 4000})
    store, shards = Store(str(tmp_path / "work")), list_shards(pool)
    samples = [item for item in read_shard(pool, shards[0]) if not isinstance(item, ShardEnd)]
    for sample in samples:
        if sample.image == b"no image":
            sample.reason = "undecodable_image"
    rows = [
        {"uid": bytes(15) + bytes([s.row]), "key": s.key, "row": s.row, "offset": s.offset, "bytes": len(s.image)}
        for s in samples
    ]
    verdicts = pa.table(
        {"kept": [s.reason is None for s in samples], "reason": [s.reason and str(s.reason) for s in samples]}
    )
    counts = {
        f"dropped:{item['values']}": item["counts"]
        for item in verdicts["reason"].drop_null().value_counts().to_pylist()
    }
    run = Run(store, pool, shards, seed=0, models={}, workers=1, threads=1, progress=Progress())
    for name, table, own in (
        ("samples", pa.Table.from_pylist(rows, SAMPLES_SCHEMA), {}),
        ("unique_uid", verdicts, counts),
    ):
        part = publish_part(store, f"{name}/x", Part("a.tar", "p", "", 0, 0, "", own), [table], table.schema)
        run.artifacts[name] = Artifact(name, f"{name}/x", (part,))
    run.verdicts = [run.artifacts["unique_uid"]]
    return run


def index(target: Store) -> dict[str, dict[str, str]]:
    return {row["key"]: row for row in csv.DictReader(io.StringIO(target.read("index.csv").decode()))}


def test_bytes_lie_under_names_of_our_own(run, tmp_path):
    target = Store(str(tmp_path / "out"))
    assert export_rejects(run, target).total() == 5
    rows = index(target)
    assert set(target.find("")) == {
        "index.csv",
        *(f"{row['reason']}/{name}" for row in rows.values() for name in row["files"].split()),
    }
    assert {key: row["reason"] for key, row in rows.items()} == {
        '"=2+2"': "undecodable_image",  # no formula
        "3": "bad_json",
        "../../4": "unsafe_name",
        "5": "member_too_large",
        "6": "missing_image",
    }
    broken = rows['"=2+2"']
    assert target.read("undecodable_image/000000-000000001.jpg") == b"no image"
    assert target.read("undecodable_image/000000-000000001.txt") == b"but a text"
    assert target.read("undecodable_image/000000-000000001.2.bin") == b"a member of its own kind"
    assert broken["shard"] == "a.tar"
    assert (broken["row"], broken["bytes"], broken["uid"]) == ("1", "8", f"{1:032x}")
    assert target.read("bad_json/000000-000000002.json") == b"{not json"
    assert rows["../../4"]["files"] == ""
    assert rows["5"]["files"] == "000000-000000004.txt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "out", "work"]


def test_a_reason_and_a_limit(run, tmp_path):
    target = Store(str(tmp_path / "one"))
    assert export_rejects(run, target, reason="bad_json") == {"bad_json": 1}
    assert list(target.find("")) == ["bad_json/000000-000000002.jpg", "bad_json/000000-000000002.json", "index.csv"]
    assert export_rejects(run, Store(str(tmp_path / "none")), limit=0).total() == 0
    with pytest.raises(InputError, match=r"one must be an empty folder or none, got one that holds bad_json/"):
        export_rejects(run, target)


def test_a_reason_that_there_is_not():
    assert check_reason("bad_row") == "bad_row"
    with pytest.raises(InputError, match=r"--reason must be one of .*, got 'bad_rows'; did you mean 'bad_row'\?"):
        check_reason("bad_rows")


def test_the_shards_with_the_most_come_first():
    counts = {("a", "x"): 1, ("a", "y"): 3, ("b", "z"): 9, ("a", "w"): 3}
    assert largest_shards(counts, "a") == [("w", 3), ("y", 3), ("x", 1)]
