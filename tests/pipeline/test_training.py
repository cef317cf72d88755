"""Whole trainings of a tiny model on Ray: what they leave behind, and what neither workers nor kills change."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from operators.errors import InputError, TrainingDiverged
from pipeline.curate import check as check_curation
from pipeline.curate import curate
from pipeline.curation import Curation
from pipeline.ledger import read_ledger
from pipeline.progress import Progress, StepProgress
from pipeline.training import trainer
from pipeline.training.examples import Examples, find_examples, open_portions, read_usable
from pipeline.training.settings import Training
from pipeline.training.trainer import TrainingResult, check, train
from tests.small_pools import write_tar
from tests.small_trainings import BATCH, SOUND, STEPS, TINY, losses, pairs, training, write_pool

pytestmark = [
    pytest.mark.ray,
    # Ray Train leaves file handles of its controller's logs to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_pool(folder)
    return folder


class Shown(Progress):
    """Takes note of what a user would see."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.endings: list[tuple[str, str]] = []

    def note(self, text: str, **fields: object) -> None:
        self.notes.append(text)

    def ended(self, step: StepProgress, end: str) -> None:
        self.endings.append((step.name, end))


def run(settings: Training, progress: Progress | None = None) -> TrainingResult:
    check(settings)
    portions = open_portions(settings, workers=2, progress=Progress())
    return train(settings, portions, workers=2, progress=progress or Progress())


def weights(result: TrainingResult) -> dict[str, np.ndarray]:
    loaded = load_file(f"{result.model_path}/open_clip_model.safetensors")
    return {name: tensor.numpy() for name, tensor in loaded.items()}


@pytest.fixture(scope="module")
def trained(folder, ray_here):
    return run(training(folder, "one"))


def test_a_training_learns_and_leaves_a_model_metrics_and_a_summary(trained, folder):
    assert (trained.samples, trained.steps, trained.samples_seen) == (SOUND, STEPS, STEPS * BATCH)
    assert not trained.reused
    curve = losses(trained)
    assert np.mean(curve[-5:]) < np.log(BATCH) < curve[0]  # from worse than a guess to better than one
    summary = json.loads((folder / "one/summary.json").read_bytes())
    assert summary["loss"] == curve[-1]
    assert summary["epochs"] == pytest.approx(STEPS * BATCH / SOUND, abs=1e-3)
    assert list((folder / "one/tensorboard").glob("*/events*"))
    (own,) = (folder / "one/training").iterdir()  # the checkpoints of a finished training are gone
    assert [path.name for path in own.iterdir()] == ["metrics.jsonl"]
    assert trained.rejected == summary["rejected"] == {"undecodable_image": 1}
    assert trained.left_out == ["1 rejected (undecodable_image 1)"]


def test_the_same_training_again_does_nothing(trained, folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "one").rglob("*") if path.is_file()}
    again = run(training(folder, "one", resources={"workers": 2, "threads": 1}))
    assert again.reused
    assert {path: path.stat().st_mtime_ns for path in (folder / "one").rglob("*") if path.is_file()} == before


def test_what_a_user_may_not_expect_of_a_training_is_said(trained, folder, monkeypatch):
    def stop(*_):
        raise RuntimeError("it would begin now")

    monkeypatch.setattr(trainer, "_fit", stop)
    shown, start = Shown(), {"name": str(folder / "tiny.json"), "weights": trained.model_path}
    with pytest.raises(RuntimeError, match="it would begin now"):
        run(training(folder, "one", model=start, average_with_start=0.25), shown)
    _, replaced, averaged = shown.notes  # the first of what is left out
    assert f"one holds the model of another training ({STEPS * BATCH} samples seen, loss " in replaced
    assert averaged.startswith("train: the finished model is an average: 0.25 of the weights of the start, which /")


def test_two_workers_in_two_pieces_each_train_as_one_does(trained, folder):
    spread = run(training(folder, "two", accumulate=2, resources={"workers": 2, "threads": 1}))
    np.testing.assert_allclose(losses(spread), losses(trained), atol=1e-4)
    for name, tensor in weights(spread).items():
        np.testing.assert_allclose(tensor, weights(trained)[name], atol=1e-3)


def test_a_killed_worker_is_replaced_and_the_model_is_the_same(trained, folder):
    killed: list[int] = []
    settings = training(folder, "killed")
    killer = threading.Thread(target=kill_after_checkpoint, args=(folder / "killed", killed))
    killer.start()
    result = run(settings)
    killer.join()
    assert len(killed) == 1
    assert losses(result) == losses(trained)
    for name, tensor in weights(result).items():
        np.testing.assert_allclose(tensor, weights(trained)[name], atol=1e-5)


def kill_after_checkpoint(workspace: Path, killed: list[int]) -> None:
    """Kills a training worker of this process's own Ray once it has written a checkpoint."""
    while not list(workspace.glob("training/*/checkpoints/*/manifest.json")):
        time.sleep(0.01)
    killed += training_workers()[:1]
    os.kill(killed[0], signal.SIGKILL)


def training_workers() -> list[int]:
    """Processes that train, below this one: Ray's node, whose children they are, is a child of ours."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_text()
    nodes = {process for process, parent in parents.items() if parent == os.getpid()}
    children = [process for process, parent in parents.items() if parent in nodes]
    return [process for process in children if "RayTrainWorker" in names[process] or "train_alone" in names[process]]


def test_a_loss_that_is_no_number_stops_with_the_step_the_uids_and_the_state(folder, ray_here):
    wild = training(folder, "wild", optimizer={"learning_rate": 1e30}, schedule={})
    shown = Shown()
    with pytest.raises(TrainingDiverged, match=r"must stay a finite number, got nan in step [23]") as caught:
        run(wild, shown)
    assert shown.endings == [("train", "failed")]
    (uids,) = (folder / "wild/training").glob("*/diverged/uids.txt")
    assert len(set(uids.read_text().split())) == BATCH
    assert str(uids.parent) in str(caught.value)
    assert list(uids.parent.glob("*/manifest.json"))


def find(settings: Training) -> Examples:
    return find_examples(open_portions(settings, workers=2, progress=Progress()), workers=2)


def test_a_curated_workspace_gives_its_kept_samples(folder, ray_here):
    pool = training(folder, "x").data[0].pool
    steps = [{"step": "filter", "column": "bytes", "keep_fraction": 0.5}]
    curation = Curation.model_validate(
        {"pool": pool, "workspace": str(folder / "curated"), "steps": steps, "report": False}
    )
    curate(curation, check_curation(curation), workers=2, progress=Progress())
    kept = {
        row["uid"] for table in read_ledger(curation.store) for row in table.to_pylist() if row["verdict"] == "kept"
    }
    data = [{"workspace": str(folder / "curated"), "weight": 2.0}]
    examples = find(training(folder, "x", data=data))
    assert examples.rows == len(kept) == 34
    assert examples.epoch == 68
    used = [read_usable(piece) for piece in examples.pieces]
    found = {
        f"{high:016x}{low:016x}"
        for usable in used
        for high, low in zip(usable.high_N.tolist(), usable.low_N.tolist(), strict=True)
    }
    assert found == kept


def test_classes_become_captions_and_must_all_be_known(folder, ray_here):
    captions = {"field": "label", "classes": ["red", "green", "blue", "white"]}
    data = training(folder, "x").data[0].model_dump() | {"captions": captions}
    examples = find(training(folder, "x", data=[data]))
    assert sorted(set(read_usable(examples.pieces[0]).captions)) == [0, 1, 2, 3]
    data["captions"] = captions | {"classes": ["red", "green", "blue"]}
    with pytest.raises(
        Exception, match=r"label of row 3 of [01]\.tar \(captions\.field label\) must be 0 to 2, or one"
    ):
        find(training(folder, "x", data=[data]))
    (folder / "classes").mkdir()
    members = [{"png": pair["png"], "cls": b"%d" % (number % 4)} for number, pair in enumerate(pairs(8))]
    write_tar(folder / "classes" / "0.tar", [*members[:7], {"png": members[7]["png"]}])
    pool = {"format": "webdataset", "path": f"{folder}/classes/*.tar"}
    wordless = find(training(folder, "x", data=[{"pool": pool, "captions": captions | {"field": "cls"}}]))
    assert (read_usable(wordless.pieces[0]).captions, wordless.missing) == ([0, 1, 2, 3, 0, 1, 2], 1)


@pytest.mark.parametrize(
    ("count", "caption", "message"),
    [
        (8, "a square", "captions must differ, or a contrastive loss learns nothing, got 'a square' for all 8"),
        (8, " ", r"data must hold samples with a caption, got none \(8 were kept and have no caption\)"),
        (1, "{} {}", "captions must differ"),
        (15, "{} {}", "batch_size must be at most the 15 samples of an epoch, got 16"),
    ],
)
def test_a_set_that_teaches_nothing_is_refused(tmp_path, ray_here, count, caption, message):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    write_tar(tmp_path / "0.tar", pairs(count, caption))
    pool = {"format": "webdataset", "path": f"{tmp_path}/*.tar", "require_text": False}
    with pytest.raises(InputError, match=message):
        run(training(tmp_path, "w", data=[{"pool": pool}]))
