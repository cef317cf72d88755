"""A real curation, damaged in every way: what `verify` finds of it, what is moved away, and what the next run makes."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.main import main
from operators.errors import DamagedError
from pipeline.artifact import read_columns
from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.engine import engine
from pipeline.generate import generate_pool
from pipeline.integrity import sealed, unseal
from pipeline.ledger import ledger_sha256
from pipeline.pool_plan import PoolSettings
from pipeline.progress import Progress
from pipeline.quarantine import quarantine
from pipeline.sample_faults import GENERATED_MEMBER_LIMIT
from pipeline.storage import Store
from pipeline.verify import folders
from pipeline.verify.workspace import Verified, verify

pytestmark = pytest.mark.ray

STEPS = [
    {"step": "rules", "min_side": 40, "min_words": 2},
    {"step": "filter", "column": "bytes", "keep_fraction": 0.9, "best": "lowest", "estimate_on": 100},
    {"step": "semantic_dedup", "model": "raw", "clusters": 4, "epsilon": 0.01},
    {"step": "prune", "method": "dbp", "model": "raw", "clusters": 6, "keep_fraction": 0.5, "neighbours": 3},
]


class Notes(Progress):
    """Keeps what a run remarks."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str, **fields: object) -> None:
        self.notes.append(text)


def run(workspace: Path, pool: Path) -> Notes:
    source = {"format": "webdataset", "path": f"{pool}/pool/*.tar", "max_member_bytes": GENERATED_MEMBER_LIMIT}
    config = Curation.model_validate(
        {
            "pool": source | {"max_reject_fraction": 0.2, "chunk_samples": 32},
            "workspace": str(workspace),
            "models": {"raw": {"library": "pixels", "size": 8}},
            "steps": STEPS,
            "report": False,
        }
    )
    notes = Notes()
    with engine(config.resources):
        curate(config, check(config), workers=3, progress=notes)
    return notes


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified") / "data"
    generate_pool(folder, PoolSettings(samples=200, samples_per_shard=50))
    return folder


@pytest.fixture(scope="module")
def sound(pool, ray_here):
    run(pool.parent / "work", pool)
    return pool.parent / "work"


@pytest.fixture
def copy(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "work"))


def look(workspace: Path) -> Verified:
    return verify(Store(str(workspace)), workers=3, progress=Progress())


def only(workspace: Path, pattern: str) -> Path:
    return sorted(workspace.glob(pattern))[0]


def flip(path: Path, place: float = 0.3) -> None:
    """Changes one bit."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


def edit(path: Path, change, seal=True) -> None:
    """Changes a record; with its seal made to fit, as if that had been written."""
    record = unseal(path.read_bytes())
    change(record)
    path.write_bytes(sealed(record) if seal else json.dumps(record).encode())


def test_nothing_is_found_in_a_sound_workspace(sound, capfd):
    found = look(sound)
    assert found.damage == []
    rows = {row.name.partition("/")[0]: row for row in found.rows}
    names = {"samples", "raw.image", "unique_uid", "semantic_dedup", "semantic_dedup.clusters", "prune", "ledger"}
    assert names <= set(rows)
    assert all(row.state == "sound" for row in found.rows)
    assert rows["samples"].tally.rows == rows["ledger"].tally.rows == rows["prune"].tally.rows > 150
    assert rows["samples"].tally.parts == 4
    assert main(["verify", str(sound)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "sound: every file is what was written, and every sum adds up"


def set_kept(record) -> None:
    record.get("counts", record)["kept"] = 1


DAMAGES = {
    "a flipped bit": ("prune/*/*/*.parquet", flip, "must be of SHA-256"),
    "a flipped bit in a footer": ("rules/*/*/*.parquet", lambda path: flip(path, 0.9), "must be of SHA-256"),
    "a cut file": ("samples/*/*/*.parquet", lambda path: path.write_bytes(path.read_bytes()[:-40]), "bytes long, got"),
    "a missing file": ("raw.image/*/*/*.parquet", Path.unlink, "bytes long, got no such file"),
    "a missing record": ("filter/*/*/part.json", Path.unlink, "since a manifest lists the part, got no such file"),
    "a wrong count": ("rules/*/*/part.json", lambda path: edit(path, set_kept), "as its manifest says"),
    "an edited record": ("rules/*/*/part.json", lambda path: flip(path, 0.6), "got ValueError: a content whose digest"),
    "an edited manifest": ("rules/*/manifest-*.json", lambda path: flip(path, 0.7), "whose digest is"),
    "a lost manifest": ("filter/*/manifest-*.json", Path.unlink, "must be there, as run.json says, got no such file"),
    "a fit": ("prune.clusters/*/fit.npz", flip, "must be of SHA-256"),
    "a threshold": ("filter/*/threshold.json", flip, "must be of SHA-256"),
    "quotas": ("prune/*/clusters.parquet", lambda path: path.write_bytes(path.read_bytes()[:-4]), "bytes long, got"),
    "groups": ("semantic_dedup/*/attempt-*/groups/*.parquet", flip, "must be of SHA-256"),
    "a file of the ledger": ("ledger/*.parquet", flip, "must be of SHA-256"),
    "the ledger's list": ("ledger.json", lambda path: flip(path, 0.5), "whose digest is"),
    "the record": ("run.json", lambda path: flip(path, 0.5), "got"),
    "the summary": ("summary.json", lambda path: edit(path, set_kept, seal=False), "as the ledger, got 1"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_found_and_nothing_else(copy, kind):
    pattern, damage, words = DAMAGES[kind]
    path = only(copy, pattern)
    damage(path)
    (found,) = look(copy).damage
    assert found.path == str(path.relative_to(copy))
    assert words in str(found)


def lose_a_row(copy: Path, *, kept: str) -> str:
    """Takes the last row out of a file of the ledger, or changes its verdict, and makes the list fit."""
    path = only(copy, "ledger/*.parquet")
    table = pq.read_table(path)
    last = table.slice(table.num_rows - 1).to_pylist()[0] | {"reason": "other"}
    rows = [table.slice(0, table.num_rows - 1)] + ([pa.Table.from_pylist([last], table.schema)] if kept else [])
    pq.write_table(pa.concat_tables(rows), path)
    name = str(path.relative_to(copy))

    def fit(record):
        entry = next(file for file in record["files"] if file["path"] == name)
        entry.update(rows=table.num_rows - (not kept), size=0, sha256="")

    edit(copy / "ledger.json", fit)
    return name


@pytest.mark.parametrize("kept", ["", "changed"])
def test_a_ledger_that_says_something_else_than_the_verdicts(copy, kept):
    name = lose_a_row(copy, kept=kept)
    (found,) = look(copy).damage
    assert found.path == name
    assert "one row for each sample with uid" in found.expected


def test_what_was_made_from_it_is_named(copy):
    path = only(copy, "rules/*/*/*.parquet")
    flip(path)
    ((folder, others),) = look(copy).depends.items()
    assert path.relative_to(copy).as_posix().startswith(folder)
    made = {other.partition("/")[0] for other in others}
    assert made == {
        "raw.image",
        "filter",
        "semantic_dedup",
        "semantic_dedup.clusters",
        "prune",
        "prune.clusters",
        "ledger.json",
    }


def test_repair_and_another_run_make_the_same_ledger(copy, pool, sound, capfd):
    for pattern, damage, _ in DAMAGES.values():
        for path in sorted(copy.glob(pattern))[-1:]:
            damage(path)
    assert main(["verify", str(copy), "--repair"]) == 2
    out = capfd.readouterr().out
    assert "run the job again: it makes what was moved away, and what depends on it" in out
    assert list((copy / "damaged/prune.clusters").glob("*/fit.npz"))
    assert run(copy, pool).notes == []
    assert ledger_sha256(Store(str(copy))) == ledger_sha256(Store(str(sound)))
    assert look(copy).damage == []


def test_a_run_makes_again_what_it_finds_damaged(copy, pool, sound):
    # The last step is to be done again, and reads all of these.
    flip(only(copy, "raw.image/*/*/*.parquet"))
    only(copy, "unique_uid/*/*/*.parquet").unlink()
    flip(only(copy, "prune.clusters/*/fit.npz"))
    shutil.rmtree(copy / "prune")
    (copy / "ledger.json").unlink()
    fit = only(copy, "prune.clusters/*/manifest-*.json")
    fit.unlink()
    notes = run(copy, pool).notes
    assert {note.partition(":")[0] for note in notes} == {"damaged"}
    assert len(notes) == 3, notes
    assert ledger_sha256(Store(str(copy))) == ledger_sha256(Store(str(sound)))
    assert look(copy).damage == []


def test_a_store_that_fails_is_not_taken_for_damage(copy, monkeypatch):
    store, path = Store(str(copy)), str(only(copy, "rules/*/*/*.parquet").relative_to(copy))

    def fail(*_):
        raise ConnectionResetError("gone")

    with monkeypatch.context() as down:
        down.setattr(Store, "open", fail)
        with pytest.raises(ConnectionResetError):
            read_columns(store, path)
    assert folders.look_again(store, path, workers=2) == []


def test_large_folders_are_handed_out(copy, monkeypatch):
    monkeypatch.setattr(folders, "_SMALL", 0)
    path = only(copy, "samples/*/*/*.parquet")
    path.unlink()
    store, folder = Store(str(copy)), str(path.relative_to(copy).parents[1])
    found = folders._check_large(store, folder, 2)
    assert (found.tally.parts, found.tally.rows > 150) == (4, True)
    assert [damage.path for damage in found.tally.damage] == [str(path.relative_to(copy))]


def outcome(store: Store, name: str, sound: pa.Table) -> str:
    try:
        same = read_columns(store, name).equals(sound)
    except DamagedError as error:
        return (
            "named" if str(error).startswith(f"{name} must be what was written into {store.url}, got ") else str(error)
        )
    return "a bit that carries nothing" if same else "read as if nothing were wrong"


def test_every_use_of_a_damaged_part_names_it(copy):
    store = Store(str(copy))
    path = only(copy, "prune/*/*/*.parquet")
    name = str(path.relative_to(copy))
    data = path.read_bytes()
    sound = read_columns(store, name)
    step = max(1, len(data) // 400)
    for place in range(0, len(data), step):
        for bit in (0, 5):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            assert outcome(store, name, sound) in ("a bit that carries nothing", "named")
    for size in (0, 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedError, match=r"--repair"):
            read_columns(store, name)


def test_quarantine_moves_what_vouches_for_a_file(copy):
    store = Store(str(copy))
    part = only(copy, "rules/*/*/*.parquet").relative_to(copy)
    moved = quarantine(store, str(part))
    assert moved[-2:] == [f"{part.parent}/part.json", str(part)]
    assert [name.rpartition("/")[2].partition("-")[0] for name in moved[:-2]] == ["manifest"]
    assert all((copy / "damaged" / name).exists() and not (copy / name).exists() for name in moved)
    (fit,) = (path.relative_to(copy) for path in copy.glob("prune.clusters/*/fit.npz"))
    assert quarantine(store, str(fit))[-1] == str(fit)
    assert not list(copy.glob("prune.clusters/*/manifest-*"))
    assert len(list(copy.glob("prune.clusters/*/*/part.json"))) == 4


def test_cleaning_takes_nothing_that_a_run_needs(copy, pool, capfd, tmp_path):
    store = Store(str(copy))
    (copy / "pieces/dead").mkdir(parents=True)
    (copy / "pieces/dead/000000.arrow").write_bytes(b"x")
    before = set(store.find(""))
    assert main(["clean", str(copy), "--unused", "--yes"]) == 0
    gone = before - set(store.find(""))
    assert "pieces/dead/000000.arrow" in gone
    assert {name.split("/")[-2] for name in gone} <= {"dead", "repeats", "duplicates"}
    assert look(copy).damage == []
    names, data = list(store.find("")), {part: store.find(part) for part in ("samples", "prune", "ledger")}
    assert run(copy, pool).notes == []
    assert (list(store.find("")), {part: store.find(part) for part in data}) == (names, data)

    assert main(["rejects", str(copy), "--export", str(tmp_path / "out"), "--limit", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    rejected = json.loads(store.read("summary.json"))["rejected"]
    assert f"{sum(rejected.values())} samples rejected" in lines
    written = sum(min(count, 2) for count in rejected.values())
    assert lines[-1] == f"{written} of them in {tmp_path}/out (index.csv)"
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"index.csv"} <= set(rejected)
    assert len(rejected) > 4
