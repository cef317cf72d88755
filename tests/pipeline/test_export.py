"""Exports of small pools whose verdicts are chosen by key."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter

from operators.edits import encode_image
from operators.errors import DamagedError, InputError, WorkspaceError
from operators.images import image_hash
from operators.uids import derive_uid
from pipeline.artifact import Artifact, publish_part
from pipeline.claim import FOLDER as LEASES
from pipeline.engine import Resources, engine
from pipeline.export.run import check_place, export
from pipeline.export.settings import Export
from pipeline.export.target import Piece, Target, read_receipts, write_piece
from pipeline.failures import winnow_error
from pipeline.kept import load_kept
from pipeline.lease import claim_on
from pipeline.listing import list_shards
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.readers import read_shard
from pipeline.run import Run
from pipeline.storage import Store
from pipeline.stream.work import SAMPLES_SCHEMA

pytestmark = pytest.mark.ray

UID = "ff" * 15 + "00"


@pytest.fixture(scope="module", autouse=True)
def workers():
    with engine(Resources(workers=2, object_store_bytes=300_000_000)) as num_workers:
        yield num_workers


def picture(number, ext="png"):
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8 + number, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(pixels), ext, 90)


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1234567
            tar.addfile(info, io.BytesIO(data))


def sample(key, number, **metadata):
    """The members of one sample; its JSON is laid out as ours never is."""
    document = json.dumps(metadata, indent=4).encode()
    return {f"{key}.PNG": picture(number), f"{key}.txt": f"picture {number}".encode(), f"{key}.json": document}


def run_pool(folder, pool, drop=()):
    """What a run leaves that drops some keys and scores every sample by its row, made without running it."""
    pool = Pool.model_validate(pool)
    run = Run(Store(str(folder / "work")), pool, list_shards(pool), 0, {}, 2, 1, Progress())
    tables = [describe_shard(pool, shard) for shard in run.shards]
    kept = [pa.table({"kept": [key not in drop for key in table["key"].to_pylist()]}) for table in tables]
    scores = [pa.table({"score": [row / 4 for row in table["row"].to_pylist()]}) for table in tables]
    run.artifacts["samples"] = publish(run, "samples", tables)
    run.artifacts["text"] = publish(run, "text", scores)
    run.add_verdicts(publish(run, "pick", kept))
    return run


def describe_shard(pool, shard):
    *samples, _ = read_shard(pool, shard)
    rows = []
    for item in samples:
        width, height = Image.open(io.BytesIO(item.image)).size
        rows.append(
            {
                "uid": item.uid or derive_uid(shard.name, item.key),
                "shard": shard.name,
                "key": item.key,
                "row": item.row,
                "offset": item.offset,
                "bytes": len(item.image),
                "ext": item.ext,
                "width": width,
                "height": height,
                "caption": item.caption,
                "image_hash": image_hash(item.image),
                "metadata": json.dumps(item.metadata, separators=(",", ":")) if item.metadata else None,
            }
        )
    return pa.Table.from_pylist(rows, SAMPLES_SCHEMA)


def publish(run, step, tables):
    parts = []
    for shard, table in zip(run.shards, tables, strict=True):
        kept = sum(table["kept"].to_pylist()) if "kept" in table.column_names else len(table)
        draft = Part(shard.name, shard.fingerprint, "", 0, 0, "", {"in": len(table), "kept": kept})
        parts.append(publish_part(run.store, step, draft, [table], table.schema))
    return Artifact(step, step, tuple(parts))


def run_export(run, path, **settings):
    return export(run, TypeAdapter(Export).validate_python({"path": str(path), **settings}))


def two_shards(folder, drop=("b", "2")):
    """Five samples in two shards with the same keys; the last has a supplied uid and a member of its own kind."""
    write_tar(folder / "pool/0.tar", sample("a", 0) | sample("b", 1) | sample("x/c", 2, url="https://a/c"))
    last = sample("b.c", 4, uid=UID, original_width=640) | {"b.c.mask.png": b"mask"}
    last = {name.replace("b.c.", "d."): data for name, data in last.items()}
    write_tar(folder / "pool/1.tar", sample("a", 3) | last)
    return run_pool(folder, {"format": "webdataset", "path": str(folder / "pool/*.tar")}, drop)


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def tree(folder):
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def sums(folder):
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in tree(folder).items()}


def test_webdataset_copies_bytes_in_order(tmp_path):
    run = two_shards(tmp_path)
    made = run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=3)
    assert (made.samples, made.files, made.reused) == (4, 8, False)
    assert list(tree(tmp_path / "out")) == [
        *("00000000.parquet", "00000000.tar", "00000000_stats.json"),
        *("00000001.parquet", "00000001.tar", "00000001_stats.json"),
        *("meta.json", "sample_ids.npy"),
    ]
    first, second = (members(tmp_path / f"out/0000000{i}.tar") for i in (0, 1))
    originals = members(tmp_path / "pool/0.tar"), members(tmp_path / "pool/1.tar")
    assert list(first) == [f"{index:012d}.{ext}" for index in range(3) for ext in ("png", "txt", "json")]
    assert first["000000000001.png"] == originals[0]["x/c.PNG"]
    assert first["000000000001.json"] == originals[0]["x/c.json"]
    assert first["000000000002.txt"] == originals[1]["a.txt"]
    assert second == {
        f"000000000003.{ext.lower()}": originals[1][f"d.{ext}"] for ext in ("PNG", "txt", "json", "mask.png")
    }
    assert pq.read_table(tmp_path / "out/00000000.parquet").to_pylist()[1] == {
        "key": "000000000001",
        "uid": derive_uid("0.tar", "x/c").hex(),
        "source_shard": "0.tar",
        "source_key": "x/c",
    }
    assert json.loads((tmp_path / "out/00000000_stats.json").read_text()) == {"successes": 3}
    assert json.loads((tmp_path / "out/meta.json").read_text()) == {"format": "webdataset", "samples": 4, "shards": 2}


def test_an_export_is_a_pool(tmp_path):
    run_export(two_shards(tmp_path), tmp_path / "out", format="webdataset")
    pool = Pool.model_validate({"format": "webdataset", "path": str(tmp_path / "out")})
    *samples, end = read_shard(pool, *list_shards(pool))
    assert [item.caption for item in samples] == ["picture 0", "picture 2", "picture 3", "picture 4"]
    assert end.damage is None


def test_again_does_nothing(tmp_path):
    run = two_shards(tmp_path)
    made = run_export(run, tmp_path / "out", format="webdataset")
    before = {name: path.stat() for name, path in tree(tmp_path).items()}
    again = run_export(run, tmp_path / "out", format="webdataset")
    assert again.reused
    assert (again.samples, again.bytes, again.seconds) == (made.samples, made.bytes, made.seconds)
    assert {name: path.stat().st_mtime_ns for name, path in tree(tmp_path).items()} == {
        name: stat.st_mtime_ns for name, stat in before.items()
    }


def test_a_receipt_lists_every_file(tmp_path):
    run_export(two_shards(tmp_path), tmp_path / "out", format="webdataset", max_samples_per_shard=2)
    (receipt,) = (tmp_path / "work/exports").glob("*.json")
    files = {file["name"]: file for file in json.loads(receipt.read_text())["files"]}
    assert {name: file["sha256"] for name, file in files.items()} == sums(tmp_path / "out")
    assert {name: file["size"] for name, file in files.items()} == {
        name: path.stat().st_size for name, path in tree(tmp_path / "out").items()
    }


@pytest.mark.parametrize("limit", [1, 6000, 9000, 10**6])
def test_no_tar_is_larger_than_asked(tmp_path, limit):
    run = two_shards(tmp_path, drop=())
    run_export(run, tmp_path / "out", format="webdataset", max_shard_bytes=limit, max_samples_per_shard=4)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    counts = [len(pq.read_table(path.with_suffix(".parquet"))) for path in tars]
    assert all(path.stat().st_size <= limit or count == 1 for path, count in zip(tars, counts, strict=True))
    assert sum(counts) == 5
    assert counts == {1: [1] * 5, 10**6: [4, 1]}.get(limit, counts)
    keys = [key for path in tars for key in pq.read_table(path.with_suffix(".parquet"))["key"].to_pylist()]
    assert keys == [f"{index:012d}" for index in range(5)]


def test_a_killed_export_goes_on(tmp_path):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=1)
    whole = sums(tmp_path / "out")
    kept = {name: (tmp_path / "out" / name).stat().st_ino for name in ("00000000.tar", "00000003.tar")}
    # As a kill leaves it: a piece half there, one with a file but no receipt, no meta.json, no receipt of the export.
    (receipt,) = (tmp_path / "work/exports").glob("*.json")
    receipt.unlink()
    (tmp_path / "out/meta.json").unlink()
    (tmp_path / "out/00000001.tar").unlink()
    (next((tmp_path / "work/exports").glob("*/files/00000002.tar.json"))).unlink()
    (tmp_path / f"out/.attempt-{'c' * 32}").write_bytes(b"half")
    assert not run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=1).reused
    assert sums(tmp_path / "out") == whole
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in kept} == kept


def test_what_attempts_left_half_written_stops_nothing(tmp_path):
    run = two_shards(tmp_path)
    number = "c" * 32
    mine, *foreign = (f".attempt-{mark}{number}" for mark in ("subset.npy-", "other.npy-", "subset.npy-2-", ""))
    for name in (mine, *foreign):
        (tmp_path / name).write_bytes(b"half")
    run_export(run, tmp_path / "subset.npy", format="uids")
    assert {path.name for path in tmp_path.glob(".attempt-*")} == set(foreign)
    (receipt,) = (tmp_path / "work/exports").glob("*.json")
    receipt.unlink()
    (next((tmp_path / "work/exports").glob("*/files")) / f".attempt-{'c' * 32}").touch()
    assert not run_export(run, tmp_path / "subset.npy", format="uids").reused


@pytest.mark.parametrize("name", ["*.json", "*/claim.json", "*/files/*.json"])
def test_a_damaged_receipt_is_told_and_found(tmp_path, name):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset")
    for receipt in (tmp_path / "work/exports").glob("*.json") if name != "*.json" else ():
        receipt.unlink()
    path = next((tmp_path / "work/exports").glob(name))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedError, match=rf"^exports/.*{path.name} must be what was written"):
        run_export(run, tmp_path / "out", format="webdataset")


def test_a_receipt_of_an_earlier_version_vouches_for_nothing(tmp_path):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset")
    (receipt,) = (tmp_path / "work/exports").glob("*.json")
    receipt.unlink()
    next((tmp_path / "work/exports").glob("*/files/*.json")).write_text("[]")
    whole = sums(tmp_path / "out")
    assert not run_export(run, tmp_path / "out", format="webdataset").reused
    assert sums(tmp_path / "out") == whole


def test_workers_of_a_run_that_was_replaced_write_no_more(tmp_path):
    run = two_shards(tmp_path)
    with run.store.locked():
        claim = claim_on(run.store.url)
        run.store.publish(f"{LEASES}/{claim.generation + 1:09d}.json", run.store.read(f"{LEASES}/{1:09d}.json"))
        piece = Piece(("a",), 1, lambda paths: paths[0].write_bytes(b"a"))
        target = Target(Store(str(tmp_path / "out")))
        with pytest.raises(WorkspaceError, match="must be used by one run at a time, got replaced"):
            write_piece(run.store, target, "exports/x/files", claim, piece)
    assert target.store.find("") == {}


def test_a_place_that_is_taken_is_refused_before_any_work(tmp_path):
    run = two_shards(tmp_path)
    settings = TypeAdapter(Export).validate_python({"format": "webdataset", "path": f"{tmp_path}/out"})
    notes = tmp_path / "out/notes.txt"
    check_place(run.store, settings)
    run_export(run, tmp_path / "out", format="webdataset")
    notes.write_text("of somebody")
    check_place(run.store, settings)  # there is nothing to write
    (tmp_path / "out/00000000_stats.json").unlink()
    with pytest.raises(WorkspaceError, match=r"export path must be new, .* got .*/out/notes.txt, which is not"):
        check_place(run.store, settings)
    notes.unlink()
    check_place(run.store, settings)


@pytest.mark.parametrize("listed", [{}, {"exports/gone/claim.json": 300}])
def test_an_export_knows_its_files_while_listings_lag_behind(tmp_path, monkeypatch, listed):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset")
    whole = sums(tmp_path / "out")
    (receipt,) = (tmp_path / "work/exports").glob("*.json")
    receipt.unlink()
    find = Store.find
    monkeypatch.setattr(
        Store, "find", lambda store, name, **options: listed if name == "exports" else find(store, name, **options)
    )
    run_export(run, tmp_path / "out", format="webdataset")
    assert sums(tmp_path / "out") == whole


def test_receipts_that_are_listed_but_gone_vouch_for_nothing(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    monkeypatch.setattr(Store, "find", lambda *_: {"files/a.tar.json": 300})
    assert list(read_receipts(store, "files")) == []


def test_a_lost_file_is_written_again(tmp_path):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset")
    whole = sums(tmp_path / "out")
    (tmp_path / "out/00000000_stats.json").write_text("cut")
    run_export(run, tmp_path / "out", format="webdataset")
    assert sums(tmp_path / "out") == whole


def test_another_config_replaces_an_export_and_back(tmp_path):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=2)
    first = sums(tmp_path / "out")
    run_export(run, tmp_path / "out/subset.npy", format="uids")
    run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=5)
    assert {"00000001.tar", "subset.npy"} & set(tree(tmp_path / "out")) == {"subset.npy"}
    made = run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=2)
    assert not made.reused
    assert sums(tmp_path / "out") == first | {"subset.npy": sums(tmp_path / "out")["subset.npy"]}
    assert run_export(run, tmp_path / "out/subset.npy", format="uids").reused


def test_a_killed_replacement_leaves_no_file_behind(tmp_path):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=1)
    picture_path = tmp_path / "pool/1.tar"
    whole = picture_path.read_bytes()
    picture_path.write_bytes(whole[:600])
    with pytest.raises(Exception, match="must be what the run read") as caught:
        run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=3)
    assert isinstance(winnow_error(caught.value), InputError)
    assert not list((tmp_path / "work/exports").glob("*.json"))
    picture_path.write_bytes(whole)
    run_export(run, tmp_path / "out", format="webdataset", max_samples_per_shard=3)
    run_export(run, tmp_path / "fresh", format="webdataset", max_samples_per_shard=3)
    assert sums(tmp_path / "out") == sums(tmp_path / "fresh")


def test_what_is_not_ours_is_not_touched(tmp_path):
    run = two_shards(tmp_path)
    stranger = tmp_path / "out/thesis.txt"
    stranger.parent.mkdir()
    stranger.write_text("mine")
    with pytest.raises(WorkspaceError, match=r"export path must be new, .*out/thesis\.txt, which is not"):
        run_export(run, tmp_path / "out", format="webdataset")
    with pytest.raises(WorkspaceError, match=r"got /.*thesis\.txt, which is not"):
        run_export(run, stranger, format="uids")
    assert sums(tmp_path / "out") == {"thesis.txt": hashlib.sha256(b"mine").hexdigest()}
    with pytest.raises(WorkspaceError, match="must be a file, got the folder"):
        run_export(run, tmp_path / "out", format="keys")
    with pytest.raises(WorkspaceError, match="must be a folder, got the file"):
        run_export(run, stranger, format="parquet")
    with pytest.raises(WorkspaceError, match="must be a file for format uids"):
        run_export(run, f"{tmp_path}/", format="uids")


def test_a_relative_path_is_the_same_place(tmp_path, monkeypatch):
    run = two_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_export(run, "out", format="webdataset")
    run_export(run, "subset.npy", format="uids")
    monkeypatch.undo()
    assert run_export(run, tmp_path / "out", format="webdataset").reused
    assert run_export(run, tmp_path / "subset.npy", format="uids").reused


def test_two_exports_must_not_write_one_file(tmp_path):
    run = two_shards(tmp_path)
    run_export(run, tmp_path / "out", format="webdataset")
    with pytest.raises(WorkspaceError, match="two exports must not write the same file"):
        run_export(run, tmp_path / "out/sample_ids.npy", format="uids")


def test_uids_are_sorted_as_datacomp_wants(tmp_path):
    run_export(two_shards(tmp_path), tmp_path / "subset.npy", format="uids")
    subset = np.load(tmp_path / "subset.npy")
    assert subset.dtype == np.dtype("u8,u8")
    expected = sorted(
        [UID, *(derive_uid(*place).hex() for place in (("0.tar", "a"), ("0.tar", "x/c"), ("1.tar", "a")))]
    )
    assert [f"{high:016x}{low:016x}" for high, low in subset.tolist()] == expected
    np.testing.assert_array_equal(subset, np.sort(subset, order=("f0", "f1")))


def test_parquet_describes_every_sample(tmp_path):
    run_export(two_shards(tmp_path), tmp_path / "tables", format="parquet")
    table = pq.read_table(tmp_path / "tables/part-00000.parquet")
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == ["a", "x/c", "a", "d"]
    assert rows[1] == {
        "uid": derive_uid("0.tar", "x/c").hex(),
        "shard": "0.tar",
        "key": "x/c",
        "url": "https://a/c",
        "text": "picture 2",
        "original_width": 10,
        "original_height": 8,
        "metadata": '{"url":"https://a/c"}',
        "text_score": 0.5,
    }
    assert (rows[3]["uid"], rows[3]["url"], rows[3]["original_width"]) == (UID, None, 640)
    assert table.schema.field("original_width").type == pa.int64()


def test_keys_serve_a_loader(tmp_path):
    run_export(two_shards(tmp_path), tmp_path / "keys.parquet", format="keys")
    kept = load_kept(str(tmp_path / "keys.parquet"))
    seen = [(shard, key) for shard in ("0.tar", "1.tar") for key in ("a", "b", "x/c", "d")]
    assert [place for place in seen if kept(*place)] == [
        ("0.tar", "a"),
        ("0.tar", "x/c"),
        ("1.tar", "a"),
        ("1.tar", "d"),
    ]


def test_nothing_kept(tmp_path):
    run = two_shards(tmp_path, drop=("a", "b", "x/c", "d"))
    assert run_export(run, tmp_path / "out", format="webdataset").samples == 0
    assert list(tree(tmp_path / "out")) == ["meta.json", "sample_ids.npy"]
    assert np.load(tmp_path / "out/sample_ids.npy").shape == (0,)
    run_export(run, tmp_path / "tables", format="parquet")
    assert pq.read_table(tmp_path / "tables").num_rows == 0
    run_export(run, tmp_path / "keys.parquet", format="keys")
    assert not load_kept(str(tmp_path / "keys.parquet"))("0.tar", "a")


def test_a_parquet_pool_becomes_tars(tmp_path):
    (tmp_path / "pool").mkdir()
    table = {"image": [picture(0), picture(1)], "text": ["one", None], "uid": [UID, None], "key": ["k0", "k1"]}
    pq.write_table(pa.table(table), tmp_path / "pool/0.parquet")
    run = run_pool(tmp_path, {"format": "parquet", "path": str(tmp_path / "pool")})
    run_export(run, tmp_path / "out", format="webdataset", max_shard_bytes=4608)
    first, second = (members(tmp_path / f"out/0000000{i}.tar") for i in (0, 1))
    assert first == {
        "000000000000.png": picture(0),
        "000000000000.txt": b"one",
        "000000000000.json": json.dumps({"key": "k0", "shard": "0.parquet", "uid": UID}).encode(),
    }
    assert list(second) == ["000000000001.png", "000000000001.json"]
    # Two such samples, of three and two members, fit exactly.
    run_export(run, tmp_path / "out", format="webdataset", max_shard_bytes=5 * 1024 + 1024)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1


def test_an_image_folder_becomes_tars(tmp_path):
    (tmp_path / "pool/cats").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"pool/cats/{i}.png").write_bytes(picture(i))
    run = run_pool(tmp_path, {"format": "images", "path": str(tmp_path / "pool"), "shard_size": 2}, drop=("cats/1",))
    run_export(run, tmp_path / "out", format="webdataset")
    assert members(tmp_path / "out/00000000.tar")["000000000001.png"] == picture(2)
    assert json.loads(members(tmp_path / "out/00000000.tar")["000000000001.json"]) == {
        "key": "cats/2",
        "label": "cats",
        "shard": "images-00001",
        "uid": derive_uid("images-00001", "cats/2").hex(),
    }


def test_bytes_do_not_depend_on_the_workers(tmp_path):
    run = two_shards(tmp_path)
    for workers in (1, 3):
        run.workers = workers
        run_export(run, tmp_path / f"out{workers}", format="webdataset", max_samples_per_shard=1)
    assert sums(tmp_path / "out1") == sums(tmp_path / "out3")
