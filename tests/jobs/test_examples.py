"""The configs in examples/, run as their first lines say, on pools of a few samples."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from jobs.demo import Demo
from jobs.main import main
from pipeline.comparison.settings import Comparison
from pipeline.config.loader import load_config
from pipeline.curation import Curation
from pipeline.evaluation.settings import Evaluation
from pipeline.ledger import read_ledger
from pipeline.nightly.settings import Nightly
from pipeline.storage import Store
from pipeline.training.settings import Training
from tests.small_pools import jpeg, sound, tar_bytes, write_tar

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINED = {"binary_embeddings", "binary_images", "masked_autoencoder"}
"""Baselines whose filter is trained on a set of its own first: `test_learned_runs` has such runs."""
UNTRAINED = [path for path in sorted(EXAMPLES.glob("baselines/*.yaml")) if path.stem not in TRAINED]

pytestmark = pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors")  # few shards, many encoders


@pytest.fixture(scope="module")
def s3(s3_server):
    """A server that AWS's own environment variables lead to, here and in the workers that start after it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", s3_server)
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def ray_with_s3(s3, no_ray, request):
    """Ray, started when the variables are set."""
    request.getfixturevalue("ray_here")
    return s3


def set_all(**values: object) -> list[str]:
    """The options that assign these values; one worker, since each would start an encoder for a few samples."""
    values = {"resources.workers": 1, **values}
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_config_that_says_how_to_run_it(path):
    words = path.read_text()
    assert words.startswith("# ")
    if "winnow train examples/" in words:
        assert load_config(str(path), Training).data
        return
    if "winnow compare examples/" in words:
        assert load_config(str(path), Comparison).selections
        return
    if "winnow demo" in words and "winnow curate" not in words:
        assert load_config(str(path), Demo).steps
        return
    if "winnow nightly examples/" in words:
        assert load_config(str(path), Nightly).nightly.drift.reject_rate.stop
        return
    if "winnow evaluate examples/" in words:
        assert load_config(str(path), Evaluation).tasks
        return
    assert load_config(str(path), Curation).steps
    assert "winnow curate examples/" in words


@pytest.mark.ray
def test_images_in_parquet(ray_with_s3, tmp_path, capsys):
    for number in range(2):
        images = [{"bytes": jpeg(40 * number + row, side=40), "path": None} for row in range(30)]
        texts = [f"a caption of row {row}" for row in range(30)]
        pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / f"{number}.parquet")
    assigned = {
        "pool.path": f"{tmp_path}/*.parquet",
        "workspace": tmp_path / "work",
        "export.0.path": tmp_path / "tars",
        "export.1.path": tmp_path / "kept",
    }
    assert main(["curate", str(EXAMPLES / "images_in_parquet.yaml"), *set_all(**assigned)]) == 0
    assert "60 samples seen = 30 kept + 30 dropped + 0 rejected" in capsys.readouterr().out
    assert sum(pq.read_table(path).num_rows for path in (tmp_path / "kept").rglob("*.parquet")) == 30


@pytest.mark.ray
def test_nightly(ray_with_s3, tmp_path, capsys):
    """Only the steps that need few samples; nights as such are tested elsewhere."""
    (tmp_path / "pool").mkdir()
    assigned = {
        "pool.path": f"{tmp_path}/pool/*.tar",
        "workspace": tmp_path / "work",
        "steps.rules.min_side": 10,
        "steps.semantic_dedup.clusters": 2,
        "steps.prune.clusters": 2,
        "export.0.path": tmp_path / "kept.npy",
    }
    arguments = ["nightly", str(EXAMPLES / "nightly.yaml"), *set_all(**assigned)]
    for night in (1, 2):
        samples = [{**parts, "jpg": jpeg(40 * night + row, side=40)} for row, parts in enumerate(sound(30))]
        write_tar(tmp_path / f"pool/{night}.tar", samples)
        assert main(arguments) == 0
        assert f"snapshot {night} (" in capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out == "nothing new since snapshot 2\n"


@pytest.mark.ray
def test_sweep(ray_with_s3, tmp_path, capsys):
    table = pa.table({"jpg": [jpeg(row, side=40) for row in range(30)]})
    pq.write_table(table, tmp_path / "0.parquet")
    assigned = {
        "pool.path": f"{tmp_path}/*.parquet",
        "workspace": tmp_path / "work",
        "steps.sweep.clusters": [2, 4, 8],
    }
    arguments = ["curate", str(EXAMPLES / "sweep.yaml"), *set_all(**assigned)]
    assert main(arguments) == 0
    assert "30 samples seen = 30 kept + 0 dropped + 0 rejected" in capsys.readouterr().out
    (numbers,) = (tmp_path / "work" / "sweep").glob("*/sweep.json")
    assert [point["k"] for point in json.loads(numbers.read_bytes())["clusters"]] == [2, 4, 8]
    assert "What to choose" in (tmp_path / "work" / "report.html").read_text()
    assert main(arguments) == 0
    assert "nothing to do: every step reused" in capsys.readouterr().out


@pytest.mark.ray
def test_tars_on_s3(ray_with_s3, capsys):
    s3 = ray_with_s3
    s3.mkdir("data")
    for number in range(2):
        samples = [{**parts, "jpg": jpeg(40 * number + row, side=40)} for row, parts in enumerate(sound(30))]
        s3.pipe(f"data/pool/{number:05d}.tar", tar_bytes(samples))
    assigned = {
        "pool.path": "s3://data/pool/*.tar",
        "workspace": "s3://data/curation",
        "export.0.path": "s3://data/curated",
        "export.1.path": "s3://data/subset.npy",
    }
    arguments = ["curate", str(EXAMPLES / "tars_on_s3.yaml"), *set_all(**assigned)]
    assert main(arguments) == 0
    assert "60 samples seen = 24 kept + 36 dropped + 0 rejected" in capsys.readouterr().out
    assert len(np.load(io.BytesIO(s3.cat_file("data/subset.npy")))) == 24
    assert main(arguments) == 0
    assert "nothing to do: every step reused" in capsys.readouterr().out
    assert json.loads(s3.cat_file("data/curation/summary.json"))["kept"] == 24


TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
KEPT_BY_BASELINES = {
    "basic": 40,
    "clip_score": 18,
    "dfn": 9,
    "image_based_and_clip_score": 18,  # the reference set is the pool
    "random": 18,
    "stratified": 18,
}
"""Of 60 samples. How many the other baselines keep is up to random weights; what they must keep is not."""


@pytest.fixture(scope="module")
def baseline_pool(tmp_path_factory):
    """English captions of large images, but for every third image, which is small; two classes; a tiny model."""
    folder = tmp_path_factory.mktemp("baselines")
    samples = [{"jpg": jpeg(number, side=40 if number % 3 == 0 else 200)} for number in range(60)]
    for number, sample in enumerate(samples):
        sample["txt"] = b"a photograph of a dog in the garden, number %d" % number
        sample["json"] = json.dumps({"label": number % 2}).encode()
    write_tar(folder / "00000.tar", samples[:35])
    write_tar(folder / "00001.tar", samples[35:])
    for name, numbers in (("few", [3, 7]), ("all", range(60))):
        (folder / name).mkdir()
        for number in numbers:
            (folder / name / f"{number}.jpg").write_bytes(samples[number]["jpg"])
    (folder / "tiny.json").write_text(json.dumps(TINY_CLIP))
    return folder


def judged(workspace: Path, step: str) -> dict[str, tuple[bool, dict]]:
    """Whether a sample was kept, and the numbers of the step that decides, by the sample's place."""
    found = {}
    for row in (row for table in read_ledger(Store(str(workspace))) for row in table.to_pylist()):
        kept, detail = row["verdict"] == "kept", json.loads(row["detail"])
        assert kept or row["step"] == step
        found[f"{row['shard']}/{row['key']}"] = kept, detail[step] if kept else detail
    return found


def check_laion2b(rows: dict[str, tuple[bool, dict]]) -> None:
    """A sample stays exactly where its score reaches the rule's."""
    assert all(-1 <= numbers["value"] <= 1 and numbers["min"] == 0.28 for _, numbers in rows.values())
    assert all(kept == (numbers["value"] >= 0.28) for kept, numbers in rows.values())


def check_image_based(rows: dict[str, tuple[bool, dict]]) -> None:
    """A cluster stays exactly where a reference image falls into it; both of these are samples of the pool, too."""
    assert all(kept == (numbers["references"] > 0) for kept, numbers in rows.values())
    assert sum({numbers["cluster"]: numbers["references"] for _, numbers in rows.values()}.values()) == 2
    assert rows["00000.tar/0003"][0]
    assert rows["00000.tar/0007"][0]


@pytest.mark.ray
@pytest.mark.parametrize("path", UNTRAINED, ids=lambda path: path.stem)
def test_baselines(ray_here, baseline_pool, tmp_path, path, capsys):
    config = load_config(str(path), Curation)
    workspace = baseline_pool / "work"  # the same for all: samples and embeddings are made once
    assigned = {"pool.path": f"{baseline_pool}/*.tar", "workspace": workspace, "export.0.path": tmp_path / "kept.npy"}
    for name in config.models:
        assigned |= {f"models.{name}.name": baseline_pool / "tiny.json", f"models.{name}.weights": "random"}
    if path.stem == "image_based":
        place = "steps.image_based"
        assigned |= {f"{place}.clusters": 5, f"{place}.reference.0.path": baseline_pool / "few"}
    if path.stem == "image_based_and_clip_score":
        place = "steps.intersection.of.image_based"
        assigned |= {f"{place}.clusters": 5, f"{place}.reference.0.path": baseline_pool / "all"}
    assert main(["curate", str(path), *set_all(**assigned)]) == 0
    assert "60 samples seen" in capsys.readouterr().out
    num_kept = len(np.load(tmp_path / "kept.npy"))
    checks = {"laion2b": ("filter", check_laion2b), "image_based": ("image_based", check_image_based)}
    if path.stem in checks:
        step, check = checks[path.stem]
        rows = judged(workspace, step)
        assert len(rows) == 60
        assert num_kept == sum(kept for kept, _ in rows.values())
        check(rows)
    else:
        assert num_kept == KEPT_BY_BASELINES[path.stem]
    assert (workspace / "report.html").exists()
