"""Bad input to `winnow curate`: one clear line, exit code 2 or 3, nothing half-written, mostly before Ray starts."""

import io
import json
import subprocess
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from jobs.main import main
from pipeline import engine


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 7 % 256, number * 31 % 256, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path, samples: list[dict[str, bytes]]) -> str:
    """Members `<number>.<extension>` of each sample, in order."""
    with tarfile.open(path, "w") as archive:
        for number, parts in enumerate(samples):
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(path)


def sound(count: int, *fields: dict) -> list[dict[str, bytes]]:
    """Sound samples; the first ones carry metadata."""
    samples = [{"jpg": jpeg(number), "txt": b"a plain text"} for number in range(count)]
    for sample, metadata in zip(samples, fields, strict=False):
        sample["json"] = json.dumps(metadata).encode()
    return samples


@pytest.fixture
def curate(tmp_path, monkeypatch, capfd):
    """Runs `winnow curate` on a sound config with changes; returns the exit code and the lines that say what is wrong.

    Nothing of an unfinished run may be in sight afterwards, and nothing of Python.
    """
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "pool.tar", sound(8))

    def run(*argv, **changes):
        config = {"pool": {"format": "webdataset", "path": "pool.tar"}, "workspace": "w", "report": False}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | changes, sort_keys=False))
        code = main(["curate", "c.yaml", *argv])
        err = capfd.readouterr().err
        assert "Traceback" not in err
        if code:
            left = [str(path.relative_to(tmp_path)) for path in (tmp_path / "w").rglob("*") if path.is_file()]
            assert not [name for name in left if any(word in name for word in ("attempt", "probe", "pieces", "ledger"))]
        return code, "\n".join(line for line in err.splitlines() if line.startswith("winnow: "))

    return run


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
        ({"pool": {"format": "tar", "path": "x"}}, "pool.format must be one of webdataset, parquet, images, idx, got"),
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
    steps = [{"step": "rules", "min_side": 8}, {"step": "prune", "method": "random", "keep_fraction": 0.5}]
    (tmp_path / "c.yaml").write_text("")
    monkeypatch.setattr("pipeline.curate.engine", None)
    code = main(["curate", str(write_config(tmp_path, steps)), "--dry-run"])
    printed = [line.split() for line in capfd.readouterr().out.splitlines() if line]
    assert code == 0
    assert printed[0] == ["shards", "bytes", "samples"]
    assert printed[2][0] == "1"
    assert [row[:2] + row[-2:] for row in printed[5:]] == [
        [name, name, "to", "do"] for name in ("samples", "unique_uid", "rules", "prune")
    ]
    assert not [path for path in (tmp_path / "w").rglob("*") if path.is_file()]


def write_config(folder, steps):
    config = {"pool": {"format": "webdataset", "path": "pool.tar"}, "workspace": "w", "steps": steps}
    (folder / "plan.yaml").write_text(yaml.safe_dump(config))
    return folder / "plan.yaml"


PRUNE = {"step": "prune", "method": "dbp", "model": "raw", "keep_fraction": 0.5}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors")  # one shard for several encoders
@pytest.mark.usefixtures("ray_here")
class TestKnownOnlyWhenThePoolIsRead:
    def test_a_pool_whose_every_sample_is_rejected(self, curate, tmp_path):
        write_tar(tmp_path / "bad.tar", [{"jpg": b"", "txt": b"a"}] * 3)
        code, line = curate(pool={"format": "webdataset", "path": "bad.tar"}, steps=[{"step": "exact_dedup"}])
        assert (code, line) == (
            3,
            "winnow: at most 5.00% of the 3 samples may be rejected (pool.max_reject_fraction), "
            "got 3 (100.00%): undecodable_image 3; worst shards: bad.tar 3 of 3",
        )
        assert not (tmp_path / "w" / "exact_dedup").exists()

    def test_a_pool_whose_every_sample_may_be_rejected(self, curate, tmp_path):
        write_tar(tmp_path / "bad.tar", [{"jpg": b"", "txt": b"a"}] * 3)
        steps = [
            {"step": "rules", "min_side": 1},
            {"step": "exact_dedup"},
            {"step": "filter", "column": "sim", "min": 0.1},
            {"step": "filter", "name": "largest", "column": "width", "keep_fraction": 0.5},
            {"step": "prune", "method": "random", "keep_fraction": 0.5},
        ]
        pool = {"format": "webdataset", "path": "bad.tar", "max_reject_fraction": 1}
        code, line = curate(pool=pool, steps=steps, export=[{"format": "uids", "path": "out/subset.npy"}])
        assert (code, line) == (0, "")
        summary = json.loads((tmp_path / "w" / "summary.json").read_text())
        assert (summary["samples_seen"], summary["kept"], summary["rejected"]) == (3, 0, {"undecodable_image": 3})
        assert len(np.load(tmp_path / "out" / "subset.npy")) == 0

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (None, ""),
            (b"", " (empty.tar unreadable: "),
            (b"no tar at all" * 99, " (empty.tar unreadable: bad header at"),
        ],
    )
    def test_a_pool_without_samples(self, curate, tmp_path, content, why):
        write_tar(tmp_path / "empty.tar", [])
        if content is not None:
            (tmp_path / "empty.tar").write_bytes(content)
        code, line = curate(pool={"format": "webdataset", "path": "empty.tar"})
        assert code == 2
        assert line.startswith(f"winnow: the pool must have at least one sample, got none in 1 shards{why}")

    def test_more_damaged_shards_than_allowed(self, curate, tmp_path):
        for name in ("a.tar", "b.tar", "c.tar"):
            (tmp_path / name).write_bytes(b"no tar at all" * 99)
        code, line = curate(pool={"format": "webdataset", "path": "*.tar"}, steps=[{"step": "exact_dedup"}])
        assert code == 3
        assert line.startswith(
            "winnow: at most 1.00% of the 4 shards may be damaged (pool.max_damaged_fraction), got 3: "
            "a.tar unreadable: bad header at byte 0; b.tar unreadable: "
        )

    def test_more_clusters_than_samples(self, curate):
        code, line = curate(models={"raw": {"library": "pixels", "size": 4}}, steps=[PRUNE | {"clusters": 9}])
        assert (code, line) == (2, "winnow: prune.clusters must be at most the 8 rows that enter the step, got 9")

    @pytest.mark.parametrize("step", [{"step": "filter", "column": "width"}, {"step": "prune", "method": "random"}])
    def test_a_target_larger_than_the_pool(self, curate, step):
        code, line = curate(steps=[step | {"keep": 9}])
        rule = f"{step['step']}.keep must be at most the 8 rows that enter the step, got 9"
        assert (code, line) == (2, f"winnow: {rule}")

    def test_a_filter_by_text(self, curate, tmp_path):
        write_tar(tmp_path / "pool.tar", sound(4, {"sim": 0.5}, {"sim": "high"}))
        for kept in ({"keep": 1}, {"min": 0.1}):
            code, line = curate(steps=[{"step": "filter", "column": "sim"} | kept])
            assert (code, line) == (2, "winnow: metadata field 'sim' must be a number to filter by, got 'high'")

    def test_a_filter_by_values_that_are_no_usual_numbers(self, curate, tmp_path):
        write_tar(tmp_path / "pool.tar", sound(4, {"sim": 0.5}, {"sim": float("nan")}, {"sim": 10**400}))
        assert curate(steps=[{"step": "filter", "column": "sim", "keep": 2}]) == (0, "")
        summary = json.loads((tmp_path / "w" / "summary.json").read_text())
        assert summary["dropped"] == {"filter": {"no_value": 2}}

    def test_a_filter_by_a_column_that_no_sample_has(self, curate):
        code, line = curate(steps=[{"step": "filter", "column": "simm", "keep_fraction": 0.5}])
        assert code == 2
        assert line.startswith("winnow: filter must keep at most the rows with the metadata field 'simm', got 4: ")
        for _ in range(2):  # what was published of it says so again
            code, line = curate(steps=[{"step": "filter", "column": "simm", "min": 0.5}])
            assert (code, line) == (
                2,
                "winnow: filter must find the metadata field 'simm' in some row, got none in 8 rows",
            )

    def test_metadata_of_an_odd_type_is_on_no_deny_list(self, curate, tmp_path):
        write_tar(tmp_path / "pool.tar", sound(4, {"url": ["x"]}, {"url": 3}, {"sha256": {}}, {"url": "http://a"}))
        (tmp_path / "urls.txt").write_text("# withdrawn\nhttp://a\n")
        assert curate(steps=[{"step": "deny", "urls": "urls.txt"}]) == (0, "")
        (tmp_path / "urls.txt").write_text("# none\n")
        before = json.loads((tmp_path / "w" / "summary.json").read_text())
        assert curate(steps=[{"step": "deny", "urls": "urls.txt"}]) == (0, "")
        after = json.loads((tmp_path / "w" / "summary.json").read_text())
        assert (before["dropped"], after["dropped"]) == ({"deny": {"denied_url": 1}}, {"deny": {}})

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "raises",
                "must not raise, got ZeroDivisionError: integer division or modulo by zero (own_functions.py:24)",
            ),
            ("gives_one_value", "must return one value for each of 8 rows, got shape (1,)"),
            ("gives_nothing", "must return one value for each of 8 rows, got shape ()"),
            ("gives_numbers", "must return booleans to give a verdict, got int64"),
        ],
    )
    def test_a_python_step_that_fails_in_a_worker(self, curate, name, message):
        function = f"tests.jobs.own_functions:{name}"
        assert curate(steps=[{"step": "python", "function": function}]) == (2, f"winnow: {function} {message}")

    def test_a_full_disk_costs_nothing_but_time(self, curate, tmp_path):
        disk = tmp_path / "w"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", disk], capture_output=True).returncode:
            pytest.skip("needs the right to mount a small disk")
        try:
            code, line = curate(steps=[{"step": "exact_dedup"}])
            assert (code, line) == (
                2,
                f"winnow: {disk} must be a folder that can be written to, got: No space left on device",
            )
            subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
            assert curate(steps=[{"step": "exact_dedup"}]) == (0, "")
            assert json.loads((disk / "summary.json").read_text())["kept"] == 8
        finally:
            subprocess.run(["umount", disk], check=True)
