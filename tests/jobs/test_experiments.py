"""The experiments: their data, what they measure, and E1 in its smallest form."""

import io
import json
from argparse import Namespace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.experiments import e1, e5
from examples.experiments.cifar import SCALES, Scale, prepare, read_pairs, write_pairs
from examples.experiments.corruptions import CORRUPTIONS, corrupted
from examples.experiments.e2 import mix
from examples.experiments.e3 import training_sets
from examples.experiments.filters import by_filter, comparison
from examples.experiments.measures import Quality, draw_aucs, write_drawing
from operators.errors import InputError
from pipeline.comparison.settings import Like

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SMALL = Scale(trusted=20, spare=10, pool=40, test=12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A stand-in for CIFAR-10: noise, of which every third label is wrong."""
    folder = tmp_path_factory.mktemp("cifar")
    draws = np.random.default_rng(0)

    def images(count):
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
            yield buffer.getvalue()

    for name, count in (("train", 520), ("test", 64)):
        label = np.arange(count) % 10
        worse = np.where(np.arange(count) % 3 == 0, (label + 1) % 10, label)
        columns = {"index": pa.array(range(count), pa.int32()), "jpg": list(images(count))}
        labels = {"label": pa.array(label, pa.int8()), "worse_label": pa.array(worse, pa.int8())}
        pq.write_table(pa.table(columns | labels), folder / f"{name}-00000.parquet")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


def test_the_parts_share_no_image_and_captions_say_the_label(data, tmp_path):
    prepare(data, tmp_path, SMALL)
    parts = {name: read_pairs(tmp_path / name) for name in ("trusted", "spare", "pool")}
    assert [table.num_rows for table in parts.values()] == [20, 10, 40]
    indices = [index for table in parts.values() for index in table["index"].to_pylist()]
    assert len(set(indices)) == 70
    for name, table in parts.items():
        for row in table.to_pylist():
            assert CLASSES[row["label"]] in row["caption"]
            assert row["true_label"] == row["index"] % 10
            wrong = name != "trusted" and row["index"] % 3 == 0
            assert (row["label"] != row["true_label"]) == wrong
    assert read_pairs(tmp_path / "test").num_rows == 12


def test_a_folder_of_another_scale_is_refused_and_one_of_the_same_left_alone(data, tmp_path):
    prepare(data, tmp_path, SMALL)
    before = (tmp_path / "pool" / "00000.parquet").stat().st_mtime_ns
    prepare(data, tmp_path, SMALL)
    assert (tmp_path / "pool" / "00000.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="give another --folder"):
        prepare(data, tmp_path, Scale(trusted=21, spare=10, pool=40, test=12))


def test_a_set_that_was_half_written_is_written_again(data, tmp_path, monkeypatch):
    written = []

    def write(table, path):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        pq.write_table(table, path)

    monkeypatch.setattr("examples.experiments.cifar.pq.write_table", write)
    table = pa.table({"index": range(16)})
    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path / "pairs", table)
    assert not (tmp_path / "pairs").exists()
    monkeypatch.undo()
    for _ in range(2):
        write_pairs(tmp_path / "pairs", table)
        assert read_pairs(tmp_path / "pairs") == table
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"train-\*\.parquet"):
        prepare(tmp_path, tmp_path / "work", SMALL)


def test_mixes_hold_the_share_and_grow_one_from_another():
    trusted, noisy = pa.table({"index": range(8)}), pa.table({"index": range(100, 110)})
    mixes = [mix(trusted, noisy, share)["index"].to_pylist() for share in (0.0, 0.25, 0.5, 1.0)]
    assert mixes[0] == list(range(8))
    assert [sum(index >= 100 for index in found) for found in mixes] == [0, 2, 4, 8]
    kept = [{index for index in found if index < 100} for found in mixes]
    assert kept[0] > kept[1] > kept[2] > kept[3]


def test_a_comparison_of_filters_has_a_selection_for_each(tmp_path):
    args = Namespace(folder=tmp_path, scale="small", overrides=["seeds=[7]"])
    config = comparison(args, "e9", {"a": str(tmp_path / "a")}, {"unfiltered": [], **by_filter(["a"], 0.25)})
    assert config.against == "unfiltered"
    assert list(config.selections) == ["unfiltered", "a"]
    assert config.seeds == (7,)
    assert config.workspace == f"{tmp_path}/e9"
    score, kept = config.selections["a"]
    assert (score.model, kept.score, kept.keep_fraction) == ("a", "alignment_a", 0.25)
    assert not any(isinstance(selection, Like) for selection in config.selections.values())


def test_networks_differ_in_number_and_truth_of_their_pairs():
    trusted, noisy = pa.table({"index": range(10)}), pa.table({"index": range(100, 120)})
    rows = {name: table["index"].to_pylist() for name, table in training_sets(trusted, noisy).items()}
    counts = {name: (sum(index < 100 for index in found), len(found)) for name, found in rows.items()}
    assert counts == {
        "clean": (10, 10),
        "clean_half": (5, 5),
        "clean_fifth": (2, 2),
        "noisy": (0, 20),
        "noisy_half": (0, 10),
        "mixed": (5, 25),
    }


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_corruptions_change_images_and_nothing_else(data, kind):
    table = pq.read_table(data / "test-00000.parquet").slice(0, 3)
    worse = corrupted(table, kind)
    assert worse.drop(["jpg"]) == table.drop(["jpg"])
    for before, after in zip(table["jpg"].to_pylist(), worse["jpg"].to_pylist(), strict=True):
        pixels = [np.asarray(Image.open(io.BytesIO(image)), dtype=int) for image in (before, after)]
        assert pixels[0].shape == pixels[1].shape
        assert np.abs(pixels[0] - pixels[1]).mean() > 3
    assert corrupted(table, kind) == worse
    assert corrupted(table.slice(1), kind) == worse.slice(1)  # what is drawn goes by the image


def test_the_tuned_filters_are_compared_on_the_pool_alone_and_with_the_trusted_pairs(tmp_path):
    args = Namespace(folder=tmp_path, scale="small", overrides=[])
    models = dict.fromkeys(["base", "tuned"], str(tmp_path))
    config = comparison(args, "e5", models, e5._selections(models, 1_000), e5._changes(tmp_path))
    assert config.against == "base"
    assert list(config.selections) == ["base", "tuned", "base_and_trusted", "unfiltered"]
    assert [step.step for step in config.selections["tuned"]] == ["filter", "score", "filter"]
    assert (config.selections["base_and_trusted"][1].keep, config.selections["base_and_trusted"][1].per) == (
        600,
        "trusted",
    )
    assert [source.name for source in config.pool.sources] == ["pool", "trusted"]
    assert [task.name for task in config.evaluation] == ["cifar10", *CORRUPTIONS]


def test_a_drawing_stands_alone(tmp_path):
    write_drawing(tmp_path / "drawn.svg", draw_aucs({"none": Quality(None, 0.6, 10), "ours": Quality(0.9, 0.8, 6)}))
    text = (tmp_path / "drawn.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "ours" in text
    assert "none" not in text.replace("fill: none", "")


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
def test_e1_in_its_smallest_form(ray_here, data, tmp_path, capsys):
    args = Namespace(data=data, folder=tmp_path, scale="tiny", cpus=None, overrides=[])
    e1.run(args)
    record = json.loads((tmp_path / "e1.json").read_bytes())
    names = ["unfiltered", "random", "binary_embeddings", "binary_images", "masked_autoencoder", "clip"]
    assert [selection["name"] for selection in record["comparison"]["selections"]] == names
    pool = SCALES["tiny"].pool
    assert [selection["samples"] for selection in record["comparison"]["selections"]] == [pool, *[192] * 5]
    truth = read_pairs(tmp_path / "pool").to_pylist()
    aligned = sum(row["label"] == row["true_label"] for row in truth)
    assert record["quality"]["unfiltered"] == {"auc": None, "precision": aligned / pool, "kept": pool}
    assert 0.3 < record["quality"]["clip"]["auc"] < 0.7  # of noise, nothing can be learnt
    assert "random" not in record["quality"]
    assert (tmp_path / "e1.svg").read_text().startswith("<svg")
    assert "less random" in capsys.readouterr().out
