"""The command `winnow generate`."""

import argparse

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.generate import add_arguments, run
from operators.errors import ConfigError, InputError
from pipeline.listing import list_shards
from pipeline.pool import Pool


def generate(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


def test_it_generates_counts_and_says_how_to_read_the_pool(tmp_path, capsys):
    folder = tmp_path / "new"
    sizes = ("--samples", 30, "--samples-per-shard", 20)
    shares = ("--exact-fraction", 0.1, "--near-fraction", 0, "--misaligned-fraction", 0.2)
    assert generate(folder, "--no-broken", *sizes, *shares) == 0
    assert pq.read_table(folder / "truth.parquet").num_rows == 30
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(maxsplit=1) for line in lines[2:7]] == [
        ["all", "30"],
        ["ok", "30"],
        ["exact duplicate", "3"],
        ["aligned caption", "24"],
        ["misaligned caption", "6"],
    ]
    pool = Pool(**yaml.safe_load(lines[-1])["pool"])
    assert [shard.name for shard in list_shards(pool)] == ["00000.tar", "00001.tar"]


def test_a_folder_in_use_is_the_users_error(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="must be new or empty"):
        generate(tmp_path)


def test_a_wrong_number_is_the_users_error(tmp_path):
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0"):
        generate(tmp_path / "new", "--samples", 0)
