"""Labels, captions and outcomes of an evaluation, without Ray."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from operators.embeddings import to_unit_float16
from operators.errors import InputError
from pipeline.artifact import parquet_bytes
from pipeline.columns import embedding_field, fixed_binary
from pipeline.evaluation import jobs
from pipeline.evaluation.jobs import ClassificationJob, Inputs, ProbeJob, RetrievalJob, read_outcomes
from pipeline.evaluation.prepare import _captions, _check_spread, _images
from pipeline.evaluation.results import Result, aggregates
from pipeline.labels.numbers import Place, class_numbers, distinct_labels, group_numbers, numbers_among
from pipeline.storage import Store
from tests.embedded_pools import uid_of

CLASSES = ["cat", "7", "dog"]
PLACES = [Place("a.tar", "k", "label_field f")]


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("2", 2), ('"cat"', 0), ('" dog "', 2), ('"2"', 2), ('"7"', 1), ('"1"', 1)]
)
def test_a_label_is_a_number_or_a_name(text, number):
    assert class_numbers(CLASSES, [text], PLACES) == [number]


@pytest.mark.parametrize("text", [None, "3", "-1", "7", '"bird"', "1.0", "true", "[0]", "null", '{"a": 1}', '"-1"'])
def test_any_other_label_is_refused(text):
    rule = r"label of sample k .* \(label_field f\) must be 0 to 2, or one of the 3 classes \('cat', '7', 'dog'\), got "
    with pytest.raises(InputError, match=rule):
        class_numbers(CLASSES, [text], PLACES)


def test_a_name_that_two_classes_have_is_no_label():
    from operators import torchvision_ops  # noqa: F401

    # isort: split
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    texts = ["657", "744", '"836"', '"tench"']
    assert class_numbers(IMAGENET_CLASSNAMES, texts, PLACES * 4) == [657, 744, 836, 0]
    rule = r"label of sample k of a\.tar \(label_field f\) must be a number, as the list of classes has 'missile' twice"
    with pytest.raises(InputError, match=rule):
        class_numbers(IMAGENET_CLASSNAMES, ['"missile"'], PLACES)


def test_labels_without_a_list_are_numbered_by_what_train_has():
    labels = distinct_labels(['"b"', "10", "9", '"a"', "9"], PLACES * 5)
    assert labels == ["9", "10", '"a"', '"b"']
    assert numbers_among(labels, ['"a"', "9"], PLACES * 2) == [2, 0]
    with pytest.raises(
        InputError, match=r'label of sample k of a\.tar \(label_field f\) must be one that train has, got "c"'
    ):
        numbers_among(labels, ['"c"'], PLACES)
    with pytest.raises(InputError, match=r"label of sample k of a\.tar \(label_field f\) must be given, got none"):
        distinct_labels([None], PLACES)


def test_groups_are_numbered_by_name():
    assert group_numbers(['"b"', '"a"', '"b"'], PLACES * 3) == [1, 0, 1]
    with pytest.raises(InputError, match=r"group of sample k of a\.tar \(label_field f\) must be given, got none"):
        group_numbers([None], PLACES)


def test_a_test_set_of_one_class_is_told():
    notes = []
    run = SimpleNamespace(progress=SimpleNamespace(note=notes.append))
    task = SimpleNamespace(name="pets")
    _check_spread(run, task, np.array([1, 0, 1]), CLASSES)
    assert not notes
    _check_spread(run, task, np.array([2, 2, 2]), CLASSES)
    assert notes[0].startswith("warning: tasks.pets: all 3 samples are of one class, 'dog'")


def test_captions_are_lines_or_a_list():
    assert _captions("one\n two \n\n") == ["one", "two"]
    assert _captions(["one\nand more", " ", 3, "two"]) == ["one\nand more", "two"]
    assert _captions(None) == _captions({"a": 1}) == []


def test_rows_of_one_image_are_one_image():
    first_N, image_M = _images([b"z", b"x", b"y", b"x"], [0, 2, 1, 1])
    np.testing.assert_array_equal(first_N, [1, 2])
    np.testing.assert_array_equal(image_M, [0, 0, 1, 0])


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def write(store, name, x_ND, present_N):
    schema = pa.schema([embedding_field("embedding", x_ND.shape[1])])
    store.publish(name, parquet_bytes(pa.table([fixed_binary(x_ND, present_N)], schema=schema)))


def write_texts(store, name, x_PD):
    np.savez(store.path(name), rows_PD=x_PD)


def test_a_mean_takes_what_was_measured_as_datacomp_does():
    facts = {"model": "m", "interval": None, "num_samples": 9, "num_classes": 2, "not_embedded": 0, "rejected": {}}
    facts |= {"damaged": {}, "facts": {}, "outcomes": "o", "metrics": {"acc1": 0.4, "mean_per_class_recall": 0.8}}
    tasks = [
        ("mnist", "MNIST", "classification", "acc1"),
        ("vtab/pets", "Oxford-IIIT Pet", "classification", "acc1"),
        ("cifar10", "cifar10", "linear_probe", "acc1"),
        ("fgvc_aircraft", "FGVC Aircraft", "classification", "mean_per_class_recall"),
    ]
    results = [Result(key=key, dataset=name, task=task, metric=metric, **facts) for key, name, task, metric in tasks]
    (average,) = aggregates(results)["m"]
    assert (average.present, average.value) == (("FGVC Aircraft", "MNIST"), pytest.approx(0.6))


def uids(count):
    return pa.array([uid_of(row) for row in range(count)], pa.binary(16))


def test_an_image_without_an_embedding_is_wrong_for_its_model(store):
    x_ND = np.array([[1, 0], [0, 1], [9, 9], [0, 0]], np.float16)
    write(store, "a.parquet", x_ND[:2], np.array([True, True]))
    write(store, "b.parquet", x_ND[2:], np.array([True, False]))
    write_texts(store, "t.npz", np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float16))
    sound_N = np.array([True, True, False, True])  # the third row is a reject
    job = ClassificationJob(uids(3), sound_N, np.array([0, 0, 0]), np.array([0, 1, 1]), ("x", "y"))
    inputs = Inputs("m", ("a.parquet", "b.parquet"), "", texts=("t.npz",))
    outcomes = job.join([job.solve(store, inputs, piece) for piece in job.pieces])
    assert (outcomes.num_units, outcomes.not_embedded) == (3, 1)
    table = job.table(outcomes)
    assert table.drop_columns(["uid"]).to_pylist() == [
        {"label": 0, "prediction": 0, "rank": 0, "correct": True, "group": 0},
        {"label": 0, "prediction": 1, "rank": 1, "correct": False, "group": 1},
        {"label": 0, "prediction": None, "rank": 2, "correct": False, "group": 1},
    ]
    again = read_outcomes(table, 2)
    for name in ("acc1", "mean_per_class_recall", "F1-macro_all", "acc_wg"):
        assert again.measure(name) == outcomes.measure(name)
    assert outcomes.measure("acc1") == pytest.approx(1 / 3)


def test_a_probe_needs_an_image_to_learn_from(store):
    write(store, "a.parquet", np.zeros((1, 2), np.float16), np.array([False]))
    one = np.array([True]), np.array([0])
    job = ProbeJob(uids(1), one[0], one[1], None, ("x",), one[0], one[1], 1.0, 0)
    with pytest.raises(InputError, match=r"models\.m must embed at least one image of train, got none"):
        job.solve(store, Inputs("m", ("a.parquet",), "", train=("a.parquet",)), slice(None))


def test_a_retrieval_in_pieces_is_the_whole(store, monkeypatch):
    rng = np.random.default_rng(0)
    x_ND, captions_MD = (to_unit_float16(rng.standard_normal((n, 4)))[0] for n in (20, 30))
    present_N = np.arange(20) != 3
    write(store, "a.parquet", x_ND, present_N)
    write_texts(store, "t.npz", captions_MD)
    image_M = np.r_[np.arange(20), rng.integers(0, 20, 10)]
    job = RetrievalJob(uids(20), np.ones(20, bool), np.arange(20), image_M)
    inputs = Inputs("m", ("a.parquet",), "", texts=("t.npz",))

    def outcomes():
        return job.join([job.solve(store, inputs, piece) for piece in job.pieces])

    whole = outcomes()
    monkeypatch.setattr(jobs, "_BLOCK_IMAGES", 6)
    assert len(job.pieces) == 4
    pieces = outcomes()
    again = read_outcomes(job.table(pieces), None)
    for found in (pieces, again):
        np.testing.assert_array_equal(found.caption_rank_N, whole.caption_rank_N)
        np.testing.assert_array_equal(found.image_rank_M, whole.image_rank_M)
        assert found.not_embedded == 1
    table = job.table(whole)
    assert table["query"].to_pylist() == ["image"] * 20 + ["text"] * 30
    assert table["uid"].to_pylist()[20:] == [uid_of(int(image)) for image in image_M]
