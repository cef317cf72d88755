"""Models, checkpoints, outcomes and texts of workspaces inside one, written by hand and damaged; without Ray."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.artifact import parquet_bytes
from pipeline.contents import artifact_folders, trainings, workspaces
from pipeline.integrity import sealed
from pipeline.quarantine import quarantine
from pipeline.storage import Store
from pipeline.training.checkpoints import save_checkpoint
from pipeline.training.finished import write_model
from pipeline.verify.records import check_record, find_records

IDENTITY = "a" * 16


@pytest.fixture
def root(tmp_path):
    """A comparison of one model, with its evaluation."""
    root = Store(str(tmp_path / "work"))
    trained = Store(f"{root.url}/training/all/0")
    facts = {"step": 5, "samples_seen": 20, "seconds": 1.5, "waited": 0.5, "loss": 2.0}
    save_checkpoint(trained, f"training/{IDENTITY}/checkpoints", {"w": torch.ones(3)}, facts)
    write_model(trained, "model", {"w": torch.ones(3)}, {"model_cfg": {}}, {"identity": IDENTITY})
    tested = Store(f"{root.url}/evaluation")
    table = parquet_bytes(pa.table({"correct": [True, False]}))
    tested.replace("outcomes/0.parquet", table)
    known = {"size": len(table), "sha256": hashlib.sha256(table).hexdigest()}
    tested.replace("outcomes/0.json", sealed({"num_samples": 2, "table": known}))
    sink = io.BytesIO()
    np.savez(sink, rows_PD=np.ones((2, 4), np.float16))
    tested.replace("texts/0.npz", sink.getvalue())
    tested.replace("eval_results.jsonl", b"{}")
    root.replace("comparison.json", b"{}")
    return root


def look(root: Store) -> dict[str, list[str]]:
    """Every row of every workspace, and what is damaged of it."""
    found: dict[str, list[str]] = {}
    for store in workspaces(root):
        for item in find_records(store):
            name, tally = check_record(store, item)
            found.setdefault(name, []).extend(damage.path for damage in tally.damage)
    return found


def test_all_of_it_is_found_and_sound(root):
    names = [store.url[len(root.url) :] for store in workspaces(root)]
    assert names == ["", "/evaluation", "/training/all/0"]
    assert look(root) == {"model": [], f"training/{IDENTITY}/checkpoints": [], "outcomes": [], "texts": []}
    trained = Store(f"{root.url}/training/all/0")
    assert trainings(trained) == [f"training/{IDENTITY}"]
    assert [folder for store in workspaces(root) for folder in artifact_folders(store)] == []


@pytest.mark.parametrize(
    ("pattern", "place", "moved"),
    [
        ("training/*/*/model/*.safetensors", -1, 3),
        ("training/*/*/model/training.json", 40, 3),
        ("training/*/*/training/*/checkpoints/*/*.pt", -300, 2),
        ("training/*/*/training/*/checkpoints/*/manifest.json", 40, 2),
        ("evaluation/outcomes/0.parquet", 30, 2),
        ("evaluation/outcomes/0.json", 30, 2),
        ("evaluation/texts/0.npz", 200, 1),
    ],
)
def test_a_flipped_bit_is_found_and_what_names_the_file_goes_with_it(root, pattern, place, moved):
    (path,) = Path(root.url).glob(pattern)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    store = next(store for store in list(workspaces(root))[1:] if str(path).startswith(store.url))
    (damaged,) = [name for names in look(root).values() for name in names]
    assert damaged == str(path.relative_to(store.url))
    assert len(quarantine(store, damaged)) == moved
    assert not path.exists()
    assert [name for names in look(root).values() for name in names] == []
