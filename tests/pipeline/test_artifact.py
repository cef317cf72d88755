import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import DamagedError, WorkspaceError
from pipeline import artifact, integrity
from pipeline.artifact import Artifact
from pipeline.parts import Part
from pipeline.storage import Store

SCHEMA = pa.schema([("row", pa.int64()), ("reason", pa.string())])


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def draft(part_id="p1", **changes) -> Part:
    return Part(**{"shard": "a.tar", "id": part_id, "path": "", "rows": 0, "size": 0, "sha256": ""} | changes)


def table(start: int, count: int) -> pa.Table:
    return pa.table([range(start, start + count), ["why"] * count], schema=SCHEMA)


def publish(store: Store, part: Part, *tables: pa.Table) -> Part:
    return artifact.publish_part(store, "step/h", part, tables, SCHEMA)


def test_a_part_is_named_by_its_content_and_recorded_last(store, tmp_path):
    part = publish(store, draft(counts={"in": 5}), table(0, 2), table(2, 0), table(2, 3))
    footer = integrity.footer_checksum(io.BytesIO((tmp_path / part.path).read_bytes()))
    assert part.path == f"step/h/p1/{part.sha256[:16]}-{footer}.parquet"
    assert (part.rows, part.size) == (5, (tmp_path / part.path).stat().st_size)
    assert artifact.read_columns(store, part.path, ["row"])["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert artifact.read_part(store, "step/h/p1") == part
    assert set(store.find("")) == {part.path, "step/h/p1/part.json"}


def test_no_rows(store):
    part = publish(store, draft())
    assert part.rows == 0
    assert artifact.read_columns(store, part.path).schema.names == ["row", "reason"]


def test_the_first_of_two_writers_is_the_one_that_counts(store):
    first = publish(store, draft(), table(0, 2))
    second = publish(store, draft(), table(5, 2))
    assert second == first
    assert publish(store, draft(), table(0, 2)) == first


def test_a_file_that_is_not_what_its_name_says_is_written_again(store):
    """As what a killed attempt left, and a disk has damaged: no record vouches for it."""
    part = publish(store, draft(), table(0, 2))
    whole = store.read(part.path)
    store.replace(part.path, b"something else")
    store.remove(f"{part.path.rpartition('/')[0]}/part.json")
    assert publish(store, draft(), table(0, 2)) == part
    assert store.read(part.path) == whole


def test_row_groups_have_one_size_whatever_the_tables(store, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "ROW_GROUP_ROWS", 4)
    part = publish(store, draft(), table(0, 3), table(3, 3), table(6, 5))
    footer = pq.read_metadata(tmp_path / part.path)
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [4, 4, 3]
    assert artifact.read_columns(store, part.path)["row"].to_pylist() == list(range(11))


def test_only_committed_parts_are_found(store):
    one = publish(store, draft("p1"), table(0, 1))
    store.publish("step/h/p2/0123.parquet", b"what a dead attempt left behind")
    assert artifact.published_parts(store, "step/h", ["p1", "p2", "p3"]) == {"p1": one}


def test_a_manifest_brings_everything_back(store):
    counts = [{"in": 3, "kept": 1, "dropped:a": 1, "dropped:b": number} for number in range(2)]
    parts = tuple(
        publish(store, draft(f"p{number}", counts=counts[number], mask="m", notes={"damage": "cut"}), table(0, 3))
        for number in range(2)
    )
    whole = Artifact("step", "step/h", parts, {"inertia": [1.5]}, seconds=2.0)
    made = artifact.publish_manifest(store, whole, {"k": 1})
    assert not made.reused
    name = artifact.manifest_name("step/h", ["p0", "p1"])
    found = artifact.read_manifest(store, "step/h", name)
    assert found.reused
    assert (found.parts, found.info, found.seconds, found.digest) == (whole.parts, {"inertia": [1.5]}, 2.0, made.digest)
    assert (found.rows, found.total("in"), found.total("nothing")) == (6, 6, 0)
    assert list(found.totals("dropped").items()) == [("a", 2), ("b", 1)]
    record = store.read_json(name)
    assert record["settings"] == {"k": 1}
    assert set(record["packages"]) >= {"winnow", "numpy", "ray", "torch"}
    later = artifact.publish_manifest(store, Artifact("step", "step/h", parts, seconds=9.0), {})
    assert later == found


def test_a_manifest_vouches_for_the_files_that_its_info_names(store):
    store.publish("step/0123456789abcdef/fit.json", b"fit")
    info = {"fit": "step/0123456789abcdef/fit.json", "others": ["no/path", {"x": "step/x"}]}
    whole = Artifact("step", "step/0123456789abcdef", (publish(store, draft()),), info, reads=("a/manifest",))
    made = artifact.publish_manifest(store, whole, {})
    assert list(made.files) == [info["fit"]]
    found = artifact.read_manifest(store, made.folder, made.manifest)
    assert (found.files, found.reads) == (made.files, ("a/manifest",))
    assert artifact.read_beside(store, found, info["fit"]) == b"fit"
    store.replace(info["fit"], b"fat")
    with pytest.raises(DamagedError, match=r"^step/0123456789abcdef/fit.json must be .*, got the SHA-256 "):
        artifact.read_beside(store, found, info["fit"])


def test_a_manifest_of_another_format(store):
    store.replace("m.json", json.dumps({"format_version": 99}).encode())
    with pytest.raises(WorkspaceError, match=r"m.json must have format_version 1, got 99"):
        artifact.read_manifest(store, "step/h", "m.json")
    with pytest.raises(FileNotFoundError):
        artifact.read_manifest(store, "step/h", "none.json")


def test_a_digest_names_the_content_and_a_mask_the_rows(store):
    one = Artifact("s", "f", (draft(sha256="1"),))
    assert one.digest == Artifact("other", "f", (draft(sha256="1", shard="b.tar"),)).digest
    assert one.digest != Artifact("s", "f", (draft(sha256="2"),)).digest
    masks = [[True], [True, False], [False, True], [True, False, False, False, False, False, False, False, False], []]
    assert len({artifact.mask_digest(np.array(mask, dtype=bool)) for mask in masks}) == len(masks)
