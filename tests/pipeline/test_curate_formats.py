"""One curation of tables, an image folder and IDX files together, with steps of the user's own."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.ledger import read_ledger
from pipeline.progress import Progress
from tests.small_pools import jpeg

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors"),  # few shards for several encoders
]

UIDS = [f"{number:032x}" for number in range(8)]
OWN = "tests.jobs.own_functions"
STEPS = [
    {"step": "python", "name": "length", "function": f"{OWN}:caption_length", "gives": "score"},
    {"step": "rules", "min_side": 8},
    {"step": "python", "name": "own", "function": f"{OWN}:keeps_long_captions_or_none"},
    {"step": "filter", "score": "length", "min": 15, "max": 16},
    {
        "step": "python",
        "name": "again",
        "function": f"{OWN}:keeps_high_scores",
        "columns": ["length"],
    },
]
TABLES = {
    "tables/a.parquet": [
        # key, image, caption, uid, note -> verdict, step, reason
        ("a0", jpeg(0), b"a caption that is long", UIDS[0], b"", "dropped", "filter", "out_of_range"),
        ("a1", None, b"no image here", UIDS[1], b"", "rejected", "samples", "missing_image"),
        ("a2", jpeg(2), b"  ", UIDS[2], b"", "rejected", "samples", "missing_text"),
        ("a3", b"no image at all", b"a caption", UIDS[3], b"", "rejected", "samples", "undecodable_image"),
        ("a4", jpeg(4), b"the same uid", UIDS[0], b"", "rejected", "samples", "duplicate_uid"),
        ("a5", jpeg(5, side=300), b"a large one", UIDS[4], b"", "rejected", "samples", "image_too_large"),
        ("a6", jpeg(6), b"brings no true uid", "12", b"", "dropped", "filter", "out_of_range"),
    ],
    "tables/b.parquet": [
        ("b0", jpeg(7), b"a uid of the other file", UIDS[0], b"", "rejected", "samples", "duplicate_uid"),
        ("b1", jpeg(8), b"\xff\xfe", UIDS[5], b"", "rejected", "samples", "bad_text_encoding"),
        ("b2", jpeg(9), b"note is no text", UIDS[6], b"\xff", "rejected", "samples", "bad_row"),
        ("b3", jpeg(10), b"fifteen letters", None, b"fine", "kept", None, None),
        ("b3", jpeg(11), b"its key returns", None, b"", "rejected", "samples", "duplicate_key"),
        (None, jpeg(12), b"no key at all", None, b"", "rejected", "samples", "bad_row"),
        ("b6", jpeg(13), b"too short", None, b"", "dropped", "own", "python"),
        ("b7", jpeg(14), b"x" * 40_000, None, b"", "dropped", "filter", "out_of_range"),
        ("b8", jpeg(15) + bytes(40_000), b"a large member", None, b"", "rejected", "samples", "member_too_large"),
    ],
}


def text(values: list) -> pa.Array:
    """A string column whatever the bytes."""
    return pa.array(values, pa.binary()).view(pa.string())


def write_pool(folder: Path) -> None:
    for name, rows in TABLES.items():
        id_, img, words, hash_, note, *_ = (list(column) for column in zip(*rows, strict=True))
        columns = {"id": id_, "img": img, "words": text(words), "hash": hash_, "note": text(note)}
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.table(columns), folder / name)
    for name, data in {"cat/1.jpg": jpeg(20), "dog/2.jpg": jpeg(21, side=4), "dog/cut.jpg": jpeg(22)[:200]}.items():
        (folder / "folder" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "folder" / name).write_bytes(data)
    pixels = np.arange(3 * 12 * 10, dtype=np.uint8)
    (folder / "idx").mkdir()
    with gzip.open(folder / "idx" / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">4I", 0x803, 3, 12, 10) + pixels.tobytes())
    (folder / "idx" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 3) + bytes([7, 0, 9]))


@pytest.fixture(scope="module")
def curated(tmp_path_factory, ray_here):
    folder = tmp_path_factory.mktemp("formats")
    write_pool(folder)
    columns = {"image_column": "img", "text_column": "words", "uid_column": "hash", "key_column": "id"}
    settings = Curation.model_validate(
        {
            "pool": {
                "sources": [
                    {"format": "parquet", "path": f"{folder}/tables/*.parquet", **columns},
                    {"format": "images", "path": f"{folder}/folder", "name": "photos", "shard_size": 2},
                    {"format": "idx", "path": f"{folder}/idx", "name": "digits"},
                ],
                "max_pixels": 10_000,
                "max_member_bytes": 20_000,
                "max_reject_fraction": 1,
            },
            "workspace": f"{folder}/work",
            "steps": STEPS,
            "export": [{"format": "webdataset", "path": f"{folder}/out"}],
        }
    )
    return settings, curate(settings, check(settings), workers=3, progress=Progress()), folder


def ledger_of(settings: Curation) -> dict[tuple[str, int], dict]:
    """The ledger's rows by shard, each shard's in the order of `samples`."""
    return {(row["shard"], row["key"]): row for table in read_ledger(settings.store) for row in table.to_pylist()}


def test_every_row_of_a_table_has_its_true_reason(curated):
    settings, _, _ = curated
    rows = ledger_of(settings)
    names = {("b.parquet", 4): "b3#row-00000004", ("b.parquet", 5): "#row-00000005"}
    for path, table in TABLES.items():
        shard = path.removeprefix("tables/")
        for number, (key, *_, verdict, step, reason) in enumerate(table):
            row = rows[shard, names.get((shard, number), key)]
            assert (row["verdict"], row["step"], row["reason"]) == (verdict, step, reason), row


def test_a_uid_stays_with_its_first_row_in_the_order_of_shards(curated):
    settings, _, _ = curated
    rows = ledger_of(settings)
    for place in (("a.parquet", "a4"), ("b.parquet", "b0")):
        assert rows[place]["uid"] == UIDS[0]
        assert json.loads(rows[place]["detail"]) == {"first_shard": "a.parquet", "first_row": 0}
    assert rows["a.parquet", "a6"]["uid"] != "12"


def test_folders_and_idx_files(curated):
    settings, _, _ = curated
    rows = ledger_of(settings)
    found = {
        (shard, key): (row["verdict"], row["step"], row["reason"]) for (shard, key), row in rows.items() if "/" in shard
    }
    assert found == {
        ("photos/images-00000", "cat/1"): ("dropped", "filter", "no_value"),
        ("photos/images-00000", "dog/2"): ("dropped", "rules", "min_side"),
        ("photos/images-00001", "dog/cut"): ("rejected", "samples", "undecodable_image"),
        **{("digits/train-images-idx3-ubyte.gz", f"{row:08d}"): ("dropped", "filter", "no_value") for row in range(3)},
    }


def test_steps_of_the_users_own_leave_their_numbers(curated):
    settings, summary, _ = curated
    rows = ledger_of(settings)
    assert json.loads(rows["b.parquet", "b3"]["detail"])["filter"] == {"value": 15.0, "min": 15.0, "max": 16.0}
    steps = {step.name: step for step in summary.steps}
    assert steps["length"].rows_in == steps["length"].rows_out == steps["rules"].rows_in
    assert summary.dropped["own"] == {"python": 1}


def test_the_sums_add_up(curated):
    _, summary, _ = curated
    assert summary.samples_seen == 16 + 3 + 3
    assert summary.kept == 1
    assert summary.uids == {"supplied": 9, "invalid": 1}
    assert summary.shards_damaged == {}


def test_exported_images_are_the_bytes_of_the_pool(curated):
    _, summary, folder = curated
    assert [export.samples for export in summary.exports] == [1]
    (tar,) = (folder / "out").rglob("*.tar")
    assert jpeg(10) in tar.read_bytes()


def test_a_changed_function_is_a_new_step(curated, ray_here, monkeypatch):
    settings, _, _ = curated
    assert run_again(settings).reused
    monkeypatch.setattr("pipeline.steps.python._source", lambda name: "another text")
    again = {step.name: step.reused for step in run_again(settings).steps}
    assert again["rules"] is True
    assert again["length"] is False


def run_again(settings: Curation):
    return curate(settings, check(settings), workers=2, progress=Progress())
