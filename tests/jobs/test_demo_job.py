"""The command `winnow demo`, but for what it runs."""

import argparse
import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import demo
from operators.errors import InputError
from pipeline.comparison.settings import Like

DOORS = ("run_training", "run_curation", "run_comparison", "check_truth", "print_summary", "print_comparison")


@pytest.fixture
def run_demo(monkeypatch):
    """Runs the command with nothing behind it; returns its config and the pools that it generated."""
    made, configs = [], []

    def generate(folder, settings, processes):
        made.append((folder.name, settings.samples))
        folder.mkdir(exist_ok=True)
        rows = settings.samples
        truth = {"shard": ["7.tar"] * rows, "expected": ["ok"] * (rows - 5) + ["unseen"] * 5}
        pq.write_table(pa.table(truth), folder / "truth.parquet")

    monkeypatch.setattr(demo, "generate_pool", generate)
    monkeypatch.setattr(demo, "engine", lambda resources: contextlib.nullcontext(1))
    for door in (*DOORS, "print_checked", "write_report"):
        monkeypatch.setattr(demo, door, lambda *args: None)
    monkeypatch.setattr(demo, "open_run", lambda store, workers, progress: (None, None))
    configure = demo.configure
    monkeypatch.setattr(demo, "configure", lambda args: configs.append(configure(args)) or configs[-1])

    def run(*argv):
        parser = argparse.ArgumentParser()
        demo.add_arguments(parser)
        assert demo.run(parser.parse_args([str(word) for word in argv])) == 0
        return configs[-1], made

    return run


def test_every_path_lies_in_the_folder_unless_set(run_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a relative workspace is
    folder = tmp_path / "odd: #1 [a]"
    config, _ = run_demo("--folder", folder, "--set", "workspace=elsewhere", "--set", "export.0.path=tars")
    assert (config.pool.sources[0].path, config.workspace) == (str(folder / "pool"), "elsewhere")
    assert [export.path for export in config.export] == ["tars", str(folder / "curated/subset.npy")]
    training = config.filter_training(folder)
    assert training.workspace == str(folder / "dfn")
    assert config.models["dfn"].weights == f"{training.workspace}/model"
    assert json.loads((folder / "towers.json").read_text()) == config.towers
    assert training.model.name == config.training.model.name == config.models["dfn"].name == f"{folder}/towers.json"
    (task,) = config.evaluation
    assert task.data.sources[0].path == str(folder / "test/pool")
    assert len(Path(task.classes).read_text().splitlines()) == 120


def test_without_a_folder_the_paths_are_those_of_the_file(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    config = demo.load_config(str(demo._CONFIG), demo.Demo)
    monkeypatch.chdir(tmp_path)
    assert demo.configure(parser.parse_args([])) == config


def test_the_comparison_is_of_the_curation_with_as_many_at_random(run_demo, tmp_path):
    config, _ = run_demo("--folder", tmp_path / "demo", "--set", "steps.prune.keep_fraction=0.9")
    comparison = config.comparison
    assert comparison.selections == {"raw": (), "random": Like(like="curated"), "curated": config.steps}
    assert comparison.selections["curated"][-1].keep_fraction == 0.9
    assert (comparison.against, comparison.workspace, comparison.seeds) == ("raw", config.workspace, config.seeds)
    assert comparison.storage == config.storage
    assert (config.curation.steps, config.curation.export) == (config.steps, config.export)


def test_what_is_not_seen_is_said_to_lie_behind_the_cut(run_demo, tmp_path, capsys):
    run_demo("--folder", tmp_path / "demo", "--samples", 2000)
    assert "2,000 samples were generated; 5 of them lie behind the cut of 7.tar, which is tr" in capsys.readouterr().out


def test_pools_are_made_once_and_another_size_is_refused(run_demo, tmp_path):
    folder = tmp_path / "demo"
    small = ("--set", "trusted=30", "--set", "test=20")
    run_demo("--folder", folder, "--samples", 300, *small)
    run_demo("--folder", folder, *small)
    made = [("demo", 300), ("trusted", 30), ("test", 20)]
    assert run_demo("--folder", folder, "--samples", 300, *small)[1] == made
    with pytest.raises(InputError, match=r"samples must be 300, as that of the pool in .*demo, got 400: remove"):
        run_demo("--folder", folder, "--samples", 400, *small)
    with pytest.raises(InputError, match=r"samples must be 30, as that of the pool in .*trusted, got 31: remove"):
        run_demo("--folder", folder, "--set", "trusted=31", "--set", "test=20")
    with pytest.raises(InputError, match=r"seed must be 0, as that of the pool in .*demo, got 1: remove that folder"):
        run_demo("--folder", folder, "--set", "seed=1", *small)
    (folder / "settings.json").unlink()  # as an earlier version left it
    assert run_demo("--folder", folder, *small)[1] == made
