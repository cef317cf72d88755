"""The command `winnow demo`, but for the curation."""

import argparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import demo
from operators.errors import InputError


@pytest.fixture
def run_demo(monkeypatch):
    """Runs the command with nothing behind it; returns its config and the sizes of the pools it would generate."""
    sizes, configs = [], []

    def generate(folder, settings):
        sizes.append(settings.samples)
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table({"row": range(settings.samples)}), folder / "truth.parquet")

    monkeypatch.setattr(demo, "generate_pool", generate)
    monkeypatch.setattr(demo, "run_curation", configs.append)
    monkeypatch.setattr(demo, "print_summary", lambda summary: None)

    def run(*argv):
        parser = argparse.ArgumentParser()
        demo.add_arguments(parser)
        assert demo.run(parser.parse_args([str(word) for word in argv])) == 0
        return configs[-1], sizes

    return run


def test_every_path_lies_in_the_folder_unless_set(run_demo, tmp_path):
    folder = tmp_path / "odd: #1 [a]"
    config, _ = run_demo("--folder", folder, "--set", "workspace=elsewhere", "--set", "export.0.path=tars")
    assert (config.pool.sources[0].path, config.workspace) == (str(folder / "pool"), "elsewhere")
    assert [export.path for export in config.export] == ["tars", str(folder / "curated/subset.npy")]


def test_without_a_folder_the_paths_are_those_of_the_file(monkeypatch):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    config = demo.load_config(str(demo._CONFIG), demo.Curation)
    assert demo.configure(parser.parse_args([])) == config


def test_the_pool_is_made_once_and_another_size_is_refused(run_demo, tmp_path):
    folder = tmp_path / "demo"
    run_demo("--folder", folder, "--samples", 300)
    run_demo("--folder", folder)
    assert run_demo("--folder", folder, "--samples", 300)[1] == [300]
    with pytest.raises(InputError, match=r"samples must be 300, as many as the pool in .*demo has, got 400: remove"):
        run_demo("--folder", folder, "--samples", 400)
    assert run_demo("--folder", tmp_path / "other")[1] == [300, 2000]
