"""What `winnow curate` refuses before Ray starts: one clear line, exit code 2, nothing written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from jobs.main import main
from pipeline import engine
from tests.small_pools import jpeg


@pytest.fixture
def refuse(curate, monkeypatch):
    """Runs what must be refused before Ray starts; returns the message."""

    def no_ray(*args):
        raise AssertionError("Ray was asked for")

    def run(*argv, **changes):
        monkeypatch.setattr("pipeline.curate.engine", no_ray)
        code, message = curate(*argv, **changes)
        assert code == 2
        return message

    return run


def test_no_config(capsys):
    assert main(["curate", "nothing.yaml"]) == 2
    assert capsys.readouterr().err == "winnow: the config file must exist, got nothing.yaml\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": 3}, "sead is not a known key, did you mean seed? Known here: "),
        ({"pool": None}, "pool must be a mapping, got null (c.yaml:1)"),
        ({"pool": {"sources": []}}, "pool.sources must have at least one source (c.yaml:2)"),
        ({"pool": {"format": "tar", "path": "x"}}, "pool.format must be one of webdataset, parquet, images, idx, clip"),
        (
            {"pool": {"format": "webdataset", "path": "x", "pth": "x"}},
            "pool.pth is not a known key, did you mean ",
        ),
        ({"steps": "rules"}, "steps must be a list, got 'rules' (c.yaml:6)"),
        ({"steps": [{"step": "rulez"}]}, "rulez.step must be one of "),
        ({"steps": [{"step": "rules"}]}, "rules is wrong: at least one rule must be given: min_side, "),
        ({"steps": [{"step": "rules", "min_side": 0}]}, "rules.min_side must be at least 1, got 0 (c.yaml:8)"),
        (
            {"steps": [{"step": "exact_dedup"}] * 2},
            "exact_dedup.name must be unique, got 'exact_dedup', which is",
        ),
        (
            {"steps": [{"step": "filter", "score": "dfn", "keep": 1}]},
            "filter must read the score of an earlier step",
        ),
        (
            {"steps": [{"step": "exact_dedup", "name": "width"}]},
            "width.name must be unique, got 'width', which is reserved (c.yaml:8)",
        ),
        ({"steps": [{"step": "python", "function": "a:f", "columns": []}]}, "python.columns must have at least 1 item"),
        ({"models": {"../x": {"library": "pixels"}}}, "models.../x must match the pattern "),
        ({"steps": [{"step": "score", "model": "clip"}]}, "score.model must name one of the models (none), got 'clip'"),
    ],
)
def test_mistakes_in_the_config_name_the_line(refuse, changes, message):
    line = refuse(**changes)
    assert line.startswith(f"winnow: {message}")
    assert "\n" not in line
    assert "c.yaml:" in line


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps.prune.keep=1", "steps.prune must name an item of steps (there: none) (--set steps.prune.keep=1)"),
        ("pool.path", "--set must be of the form key.key=value, got 'pool.path'"),
        ("pool.pth=1", "pool.pth is not a known key, did you mean path? Known here: "),
        ("seed=-1", "seed must be at least 0, got -1 (--set seed=-1)"),
        ("seed.x=1", "seed must be a mapping or a list to hold 'x', got 0 (--set seed.x=1)"),
    ],
)
def test_mistakes_of_set(refuse, assignment, message):
    assert refuse("--set", assignment, seed=0, steps=[]).startswith(f"winnow: {message}")


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"path": "nothing"}, "pool path must exist, got nothing"),
        ({"path": "nothing/*.tar"}, "pool path must hold at least one webdataset file, got none at nothing/*.tar"),
        ({"path": "empty"}, "pool path must hold at least one webdataset file, got none at empty"),
        ({"path": "gopher://x"}, "pool path must have a protocol that fsspec can open, got gopher://x: "),
        ({"path": "table.parquet"}, "pool format must be parquet for "),
        ({"format": "parquet", "path": "urls.parquet"}, "is a metadata table without image bytes: download it first"),
        ({"format": "parquet", "path": "ids.parquet"}, "must have a column of image bytes, got id"),
        (
            {"format": "parquet", "path": "table.parquet", "text_column": "txt"},
            "(image, text), got 'txt'; did you",
        ),
        (
            {"format": "parquet", "path": "table.parquet", "uid_column": "image"},
            "uid_column must be a column of a fit",
        ),
    ],
)
def test_the_pool_cannot_be_what_the_config_says(refuse, tmp_path, pool, message):
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"image": [jpeg(0)], "text": ["a"]}), tmp_path / "table.parquet")
    pq.write_table(pa.table({"url": ["http://a"], "text": ["a"]}), tmp_path / "urls.parquet")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "ids.parquet")
    line = refuse(pool={"format": "webdataset"} | pool)
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "w").exists()


TIMM = {"library": "timm", "name": "vit_tiny_patch16_224"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TIMM | {"weights": "no.safetensors"}, "models.m: weights must exist and be readable, got no.safetensors"),
        (TIMM | {"weights": "cut.safetensors"}, "models.m: weights must be "),
        (TIMM | {"weights": "text.pt"}, "models.m: weights must be a .safetensors or torch file, got "),
        (TIMM | {"weights": "empty"}, "models.m: folder of weights must hold a .safetensors or .bin file, got empty"),
        (TIMM | {"name": "vit_tny", "weights": "random"}, "models.m: name must be a model that the library knows, got"),
        (
            {"library": "open_clip", "name": "ViT-B-99", "weights": "random"},
            "models.m: name must be a model that the library knows, got 'ViT-B-99'",
        ),
    ],
)
def test_the_weights_cannot_be_used(refuse, tmp_path, model, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello world")
    save_file({"a": np.zeros(64, np.float32)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-8])
    line = refuse(models={"m": model})
    assert line.startswith(f"winnow: {message}")
    assert "\n" not in line


@pytest.mark.parametrize("model", [{"library": "pixels"}, TIMM | {"weights": "random"}])
def test_a_model_without_a_text_tower_gives_no_score(refuse, model):
    line = refuse(models={"m": model}, steps=[{"step": "score", "model": "m"}])
    rule = f"score.model must name a model with a text tower, got 'm' of library {model['library']}"
    assert line.startswith(f"winnow: {rule} (c.yaml:")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing_here:f", "got 'nothing_here:f': ModuleNotFoundError: No module named 'nothing_here'"),
        ("own_module:g", "got 'own_module:g': AttributeError: module 'own_module' has no attribute 'g'"),
        ("own_module:number", "function must be callable, got 'own_module:number', a int"),
        (
            "with_syntax_error:f",
            "got 'with_syntax_error:f': SyntaxError: invalid syntax (with_syntax_error.py",
        ),
        ("raising:f", "got 'raising:f': ZeroDivisionError: division by zero (raising.py:2)"),
    ],
)
def test_a_python_step_that_cannot_be_imported(refuse, tmp_path, function, message):
    (tmp_path / "own_module.py").write_text("number = 3\n")
    (tmp_path / "with_syntax_error.py").write_text("def f(:\n")
    (tmp_path / "raising.py").write_text("# a comment\n1 / 0\n")
    line = refuse(steps=[{"step": "python", "function": function}])
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"uids": "no.txt"}, "no.txt must be a readable list, got FileNotFoundError: "),
        ({"uids": "words.txt"}, "words.txt must list uids of 32 hexadecimal digits, got 'a word' (2 such lines)"),
        ({"uids": "words.npy"}, "words.npy must be a numpy file, got "),
        ({"uids": "numbers.npy"}, "numbers.npy must hold dtype u8,u8, got int64"),
        (
            {"image_hashes": "words.txt"},
            "words.txt must list image hashes of 32 or 64 hexadecimal digits, got ",
        ),
        ({"urls": "latin.txt"}, "latin.txt must be text in UTF-8, got "),
        ({"urls": "empty"}, "empty must be a readable list, got IsADirectoryError: "),
        ({"urls": "gopher://x"}, "gopher://x must be a readable list, got ValueError: Protocol not known: gopher"),
    ],
)
def test_a_deny_list_that_cannot_be_read(refuse, tmp_path, lists, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes("http://caf\u00e9".encode("latin-1"))
    for name in ("words.txt", "words.npy"):
        (tmp_path / name).write_text("a word\nanother\n")
    np.save(tmp_path / "numbers.npy", np.arange(3))
    assert refuse(steps=[{"step": "deny"} | lists]).startswith(f"winnow: {message}")


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("pool.tar/below", "Not a directory"),
        ("pool.tar", "FileExistsError: "),
        ("/proc/winnow", ""),
    ],
)
def test_a_place_that_cannot_be_written(refuse, place, why):
    message = f"{place} must be a folder that can be written to, got: {why}"
    assert message in refuse(workspace=place)
    assert message in refuse(export=[{"format": "webdataset", "path": place}])
    assert message in refuse(export=[{"format": "uids", "path": f"{place}/subset.npy"}])


def test_a_place_of_an_unknown_protocol(refuse):
    line = "winnow: gopher://x must have a protocol that fsspec can open, got: Protocol not known: gopher"
    assert refuse(workspace="gopher://x") == line
    assert refuse(export=[{"format": "webdataset", "path": "gopher://x"}]) == line


def test_a_store_that_cannot_be_reached(refuse):
    storage = {"endpoint_url": "http://127.0.0.1:1", "config_kwargs": {"retries": {"max_attempts": 0}}}
    storage |= {"key": "k", "secret": "never-shown"}
    pool = {"format": "webdataset", "path": "s3://nowhere/*.tar", "storage": storage}
    lines = [refuse(pool=pool), refuse(workspace="s3://nowhere/w", storage=storage)]
    assert lines[0].startswith("winnow: pool path must be reachable, got s3://nowhere/*.tar: ")
    assert lines[1].startswith("winnow: s3://nowhere/w must be a folder that can be written to, got: ")
    assert not any("never-shown" in line for line in lines)
    assert "got: TypeError: " in refuse(workspace="s3://nowhere/w", storage={"endpiont_url": "x"})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer(curate, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(engine.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(engine.ray, "shutdown", lambda: None)
    code, line = curate()
    assert code == 2
    assert line.startswith(f"winnow: address must be that of a running Ray cluster, got {address!r}: ")
    assert line.endswith("Connection refused")


def test_a_dry_run_prints_the_plan_and_makes_nothing(curate, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("pipeline.curate.engine", None)
    steps = [{"step": "rules", "min_side": 8}, {"step": "prune", "method": "random", "keep_fraction": 0.5}]
    export = [{"format": "uids", "path": "out/subset.npy"}]
    assert curate("--dry-run", steps=steps, export=export) == (0, "")
    assert main(["curate", "c.yaml", "--dry-run"]) == 0
    printed = [line.split() for line in capfd.readouterr().out.splitlines() if line]
    assert printed[0] == ["shards", "bytes", "samples"]
    assert printed[2] == ["1", f"{(tmp_path / 'pool.tar').stat().st_size:,}", "8"]
    assert [row[:6] for row in printed[5:9]] == [
        ["samples", "samples", "to", "do", "8", "8"],
        ["unique_uid", "unique_uid", "to", "do", "8", "8"],
        ["rules", "rules", "to", "do", "8", "8"],
        ["prune", "prune.random", "to", "do", "8", "4"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "pool.tar"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--json"], "--json must be used with --dry-run, got it without"),
        (["--gpus", "0"], "--gpus must be used with --dry-run, got it without"),
        (["--cpu-price", "0.1"], "--cpu-price must be used with --dry-run, got it without"),
        (["--dry-run", "--gpus", "-1"], "gpus must be at least 0, got -1"),
        (["--dry-run", "--sample", "-1"], "sample must be at least 1, got -1"),
        (["--dry-run", "--rates", "none.json"], "rates must be a file of JSON or YAML, got none.json"),
    ],
)
def test_options_of_a_plan(refuse, argv, message):
    assert message in refuse(*argv)
