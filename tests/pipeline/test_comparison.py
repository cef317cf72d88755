"""A whole comparison with tiny towers: what it trains, what it says, and that a second run does nothing."""

import json
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from operators.errors import WorkspaceError
from pipeline.comparison import trainings
from pipeline.comparison.compare import check, compare
from pipeline.comparison.results import print_comparison, read_comparison
from pipeline.comparison.selections import Selected
from pipeline.comparison.settings import Comparison
from pipeline.comparison.workspace import replaced
from pipeline.generate import generate_pool
from pipeline.pool import Source
from pipeline.pool_plan import PoolSettings
from pipeline.progress import Progress
from tests.small_pools import jpeg, write_tar

pytestmark = pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors")  # few shards

TOWERS = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
SOUND = {"broken": False, "exact_fraction": 0, "near_fraction": 0, "misaligned_fraction": 0}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Comparison:
    folder = tmp_path_factory.mktemp("compare")
    generate_pool(folder / "pool", PoolSettings(samples=80, samples_per_shard=40, **SOUND))
    # As DataComp's sets are: images and classes, and not a word.
    write_tar(folder / "test.tar", [{"jpg": jpeg(6 * n), "cls": b"%d" % (n % 3)} for n in range(40)])
    (folder / "towers.json").write_text(json.dumps(TOWERS))
    return Comparison.model_validate(
        {
            "workspace": str(folder / "work"),
            "pool": {"format": "webdataset", "path": f"{folder}/pool/pool/*.tar"},
            "models": {"raw": {"library": "pixels", "size": 8}},
            "decontaminate": {"model": "raw", "epsilon": 0.001},
            "selections": {
                "random": {"like": "small"},
                "small": [{"step": "filter", "column": "bytes", "keep_fraction": 0.5, "best": "lowest"}],
            },
            "training": {
                "model": {"name": str(folder / "towers.json")},
                "samples_seen": 64,
                "batch_size": 16,
            },
            "evaluation": [
                {
                    "task": "classification",
                    "name": "scenes",
                    "data": {"format": "webdataset", "path": f"{folder}/test.tar"},
                    "classes": ["night", "grass", "sand"],
                }
            ],
            "bootstrap": 50,
            "seeds": [0, 1],
            "diversity": {"model": "raw", "clusters": 4},
            "resources": {"workers": 2},
        }
    )


@pytest.fixture(scope="module")
def found(ray_here, config):
    return run(config)


def run(config):
    return compare(config, check(config), workers=2, progress=Progress())


@pytest.mark.ray
def test_every_selection_is_trained_with_every_seed_and_tested(config, found):
    assert [(selection.name, selection.samples) for selection in found.selections] == [("random", 40), ("small", 40)]
    trained = [(model.selection, model.seed, model.samples, model.samples_seen) for model in found.trained]
    assert sorted(trained) == [(name, seed, 40, 64) for name in ("random", "small") for seed in (0, 1)]
    (task,) = found.tasks
    assert (task.task, task.metric, task.num_samples) == ("scenes", "acc1", 40)
    results = [json.loads(line) for line in config.store.read("evaluation/eval_results.jsonl").splitlines()]
    values = {result["model"]: result["metrics"]["main_metric"] for result in results}
    for accuracy in task.accuracies:
        assert accuracy.values == (values[f"{accuracy.selection}-0"], values[f"{accuracy.selection}-1"])
    assert [(difference.ours, difference.theirs) for difference in task.differences] == [("small", "random")]
    clusters = {selection.name: selection.diversity["after"]["samples"] for selection in found.selections}
    assert clusters == {"random": 40, "small": 40}
    for selection in found.selections:
        assert selection.diversity["at_random"]["samples"] == 40
    (manifest,) = Path(config.workspace).glob("decontaminate_evaluation/*/manifest-*.json")
    facts = json.loads(manifest.read_bytes())["info"]["reference"]
    assert (facts["samples"], facts["compared"], facts["rejected"]) == (40, 40, {})
    assert len(list(Path(config.workspace).glob("evaluation/differences/*.json"))) == 3
    (small,) = (found for found in task.accuracies if found.selection == "small")
    assert small.interval[0] >= 0
    assert small.over_samples[0] <= small.mean <= small.over_samples[1]
    assert found.pool == (config.pool.sources[0].path,)


@pytest.mark.ray
def test_the_folder_of_another_job_or_pool_is_refused(config, found, tmp_path):
    check(config)
    own = Path(config.workspace)
    elsewhere = tmp_path / "pool"
    elsewhere.mkdir()
    write_tar(elsewhere / "0.tar", [{"jpg": jpeg(n), "txt": b"a text"} for n in range(4)])
    pool = config.pool.model_copy(update={"sources": (Source(format="webdataset", path=str(elsewhere)),)})
    rule = (
        r"^workspace must be a folder of the comparison's own, or of a curation of its pool, got .*work, which holds a"
    )
    with pytest.raises(WorkspaceError, match=rf"{rule} comparison of another pool, .*\.tar \(comparison\.json\)"):
        check(config.model_copy(update={"pool": pool}))
    for name, kind in (("metrics.jsonl", " training"), ("eval_results.jsonl", "n evaluation")):
        (own / name).write_text("")
        with pytest.raises(WorkspaceError, match=rf"{rule}{kind} \({name}\)"):
            check(config)
        (own / name).unlink()
    assert replaced(config) == ""
    assert replaced(config.model_copy(update={"seeds": (0, 1, 2)})).endswith(
        "work: random (random), small (filter); seeds 0, 1; 64 samples seen"
    )


@pytest.mark.ray
def test_random_selections_differ_by_seed(config, found):
    kept = [path.read_bytes() for path in Path(config.workspace).glob("draw/*/manifest-*.json")]
    assert len(kept) == 2
    weights = [Path(model.model, "open_clip_model.safetensors").read_bytes() for model in found.trained]
    assert len(set(weights)) == 4


@pytest.mark.ray
def test_what_is_written_says_the_same_and_a_second_run_reuses_it(config, found, capsys):
    assert read_comparison(config.store) == found
    assert config.store.exists("comparison.html")
    paths = [path for path in Path(config.workspace).rglob("*") if path.is_file() and path.name != "status.json"]
    times = {path: path.stat().st_mtime_ns for path in paths}
    again = run(config)
    assert again.reused
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == set()
    print_comparison(again)
    out = capsys.readouterr().out
    assert "less random" in out
    assert "nothing to do: every model and every result reused" in out


def test_an_interrupt_begins_no_other_training_and_ends_those_that_run(config, monkeypatch):
    begun, ended = threading.Event(), []

    def train(training, portions, *, progress, **_):
        with progress.step("train") as step:
            begun.set()
            try:
                while True:
                    step.advance(1)
                    time.sleep(0.01)
            finally:
                ended.append(training.workspace)

    def interrupted(futures, timeout=None, return_when=None):
        if return_when is None:  # for those that run to end
            return wait(futures, timeout)
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(trainings, "side_by_side", lambda config, jobs: (1, config))
    monkeypatch.setattr(trainings, "train", train)
    monkeypatch.setattr(trainings, "wait", interrupted)
    selections = [Selected("small", (), None, {0: None, 1: None}, 40)]
    with pytest.raises(KeyboardInterrupt):
        trainings.train_all(config, selections, workers=1, progress=Progress())
    assert [Path(workspace).name for workspace in ended] == ["0"]
