"""A whole evaluation of tiny models on a real Ray: against arithmetic redone here, reuse, resuming, and bad sets."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from operators.embeddings import to_unit_float16
from operators.encoders.settings import OpenClipSettings
from operators.errors import InputError, LimitExceeded
from operators.evaluation.intervals import Estimate, bootstrap
from operators.uids import derive_uid
from pipeline.evaluation.evaluate import check, evaluate
from pipeline.evaluation.results import compare_results, draws, load_outcomes, print_results
from pipeline.evaluation.settings import Evaluation
from pipeline.models import build_encoder, build_preprocessor
from pipeline.progress import Progress
from tests.small_pools import jpeg, write_tar

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors"),  # few shards, many encoders
]

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
CLASSES = ["night", "grass", "sand"]
TEMPLATES = ["a photo of a {c}.", "{c}, seen from above"]
NUMBERS = [80 * (row % 3) + row for row in range(36)]  # images of a class look alike
REGIONS = [row % 2 for row in range(36)]
BROKEN = 5


def npy(value):
    sink = io.BytesIO()
    np.save(sink, np.array([value, 9]))
    return sink.getvalue()


def write_sets(folder):
    """Tars of DataComp's layout with one broken image, and a table of the same images with captions."""
    home = folder / "sets" / "wds_geode_test"
    (home / "test").mkdir(parents=True)
    (home / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (home / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    (home / "test" / "nshards.txt").write_text("2\n")
    samples = [
        {"jpg": jpeg(number), "cls": b"%d" % (row % 3), "npy": npy(REGIONS[row])} for row, number in enumerate(NUMBERS)
    ]
    samples[BROKEN]["jpg"] = b"\xff\xd8 no image"
    write_tar(home / "test" / "0.tar", samples[:20])
    write_tar(home / "test" / "1.tar", samples[20:])
    rows = {
        "image": [jpeg(number) for number in NUMBERS],
        "label": [CLASSES[row % 3] for row in range(36)],
        "text": [f"{CLASSES[row % 3]} number {row}\nit is {row}" if row else " " for row in range(36)],
    }
    pq.write_table(pa.table(rows), folder / "test.parquet")


def config(folder, **changes):
    data = {"format": "parquet", "path": f"{folder}/test.parquet"}
    named = {"data": data, "classes": CLASSES, "templates": TEMPLATES}
    settings = {
        "workspace": f"{folder}/workspace",
        "models": {
            name: {"library": "open_clip", "name": f"{folder}/tiny.json", "weights": "random", "seed": seed}
            for name, seed in [("one", 1), ("two", 2)]
        },
        "tasks": [
            {"task": "classification", "name": "cifar10", **named},
            {"task": "classification", "format": "datacomp", "path": f"{folder}/sets"},
            {"task": "retrieval", "name": "pairs", "data": data},
            {"task": "linear_probe", "name": "probe", "train": data, "test": data},
        ],
        "bootstrap": 50,
    }
    return Evaluation.model_validate(settings | changes)


def run(settings, workers=2):
    check(settings)
    return evaluate(settings, workers=workers, progress=Progress())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, ray_here):
    folder = tmp_path_factory.mktemp("evaluation")
    write_sets(folder)
    (folder / "tiny.json").write_text(json.dumps(TINY))
    settings = config(folder)
    return folder, settings, run(settings)


@pytest.fixture(scope="module")
def towers(evaluated):
    """The images and texts of model `one`, embedded here."""
    folder, _, _ = evaluated
    settings = OpenClipSettings(library="open_clip", name=f"{folder}/tiny.json", weights="random", seed=1)
    encoder, preprocessor = build_encoder(settings, device="cpu"), build_preprocessor(settings)

    def text(words):
        return to_unit_float16(encoder.encode_texts(preprocessor.text(words)))[0].astype(np.float64)

    images = [Image.open(io.BytesIO(jpeg(number))).convert("RGB") for number in NUMBERS]
    pixels = np.stack([preprocessor.image(image) for image in images])
    return to_unit_float16(encoder.encode_images(pixels))[0].astype(np.float64), text


def result(results, key, model="one"):
    (found,) = [result for result in results if (result.key, result.model) == (key, model)]
    return found


def class_weights(text):
    means = np.stack([text([t.replace("{c}", name) for t in TEMPLATES]).mean(axis=0) for name in CLASSES])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def files_of(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "status.json"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_classification_is_the_nearest_mean_of_prompts(evaluated, towers):
    _, settings, results = evaluated
    found = result(results, "cifar10")
    table = pq.read_table(settings.store.path(found.outcomes))
    images_ND, text = towers
    prediction_N = (images_ND @ class_weights(text).T).argmax(axis=1)
    label_N = np.arange(36) % 3
    np.testing.assert_array_equal(table["prediction"], prediction_N)
    np.testing.assert_array_equal(table["label"], label_N)
    np.testing.assert_array_equal(table["correct"], prediction_N == label_N)
    assert table["uid"].to_pylist() == [derive_uid("test.parquet", f"{row:08d}") for row in range(36)]
    assert found.value == found.metrics["acc1"] == (prediction_N == label_N).mean()
    assert (found.dataset, found.metric, found.num_samples, found.rejected) == ("CIFAR-10", "acc1", 36, {})
    estimate = bootstrap(
        lambda times_N: load_outcomes(settings.store, found).measure("acc1", times_N),
        36,
        draws(0, "cifar10"),
        resamples=50,
    )
    assert found.interval == (estimate.low, estimate.high)


def test_a_suite_has_groups_and_leaves_out_what_cannot_be_decoded(evaluated, towers):
    _, _, results = evaluated
    found = result(results, "fairness/geode")
    images_ND, text = towers
    sound_N = np.arange(36) != BROKEN
    correct_N = (images_ND @ class_weights(text).T).argmax(axis=1) == np.arange(36) % 3
    region_N = np.array(REGIONS)
    worst = min(correct_N[sound_N & (region_N == region)].mean() for region in (0, 1))
    assert (found.metric, found.value) == ("acc_wg", pytest.approx(worst))
    assert (found.num_samples, found.rejected, found.not_embedded) == (35, {"undecodable_image": 1}, 0)


def test_retrieval_is_a_sort_of_all_captions_and_all_images(evaluated, towers):
    _, _, results = evaluated
    images_ND, text = towers
    captions_MD = text([line for row in range(1, 36) for line in (f"{CLASSES[row % 3]} number {row}", f"it is {row}")])
    score_NM = images_ND[1:] @ captions_MD.T  # the first image has no caption
    best_N = (-score_NM).argsort(axis=1, kind="stable")
    found_N = [any(m // 2 == n for m in best_N[n, :5]) for n in range(35)]
    best_M = (-score_NM).argsort(axis=0, kind="stable")
    found_M = [m // 2 in best_M[:10, m] for m in range(70)]
    found = result(results, "pairs")
    assert found.metrics["text_retrieval_recall@5"] == pytest.approx(np.mean(found_N))
    assert found.metrics["image_retrieval_recall@10"] == pytest.approx(np.mean(found_M))
    both = found.metrics["image_retrieval_recall@1"] + found.metrics["text_retrieval_recall@1"]
    assert (found.metric, found.value) == ("mean_recall@1", both / 2)
    assert (found.num_samples, found.rejected) == (35, {"missing_text": 1})


def test_a_linear_probe_learns_the_colours(evaluated):
    _, _, results = evaluated
    found = result(results, "probe")
    assert found.value >= 0.9
    assert found.facts["l2"] > 0
    assert found.train == {"samples": 36, "rejected": {}, "damaged": {}}


def test_differences_are_paired(evaluated):
    _, settings, results = evaluated
    one, two = result(results, "cifar10"), result(results, "cifar10", "two")
    difference = compare_results(settings.store, one, two, resamples=50)
    assert difference.value == pytest.approx(one.value - two.value)
    assert difference.low <= difference.value <= difference.high
    assert compare_results(settings.store, one, one, resamples=50) == Estimate(0.0, 0.0, 0.0)


def test_what_is_written(evaluated, capsys):
    _, settings, results = evaluated
    lines = [json.loads(line) for line in settings.store.read("eval_results.jsonl").splitlines()]
    assert [(line["key"], line["dataset"], line["model"]) for line in lines] == [
        (key, dataset, model)
        for key, dataset in [
            ("cifar10", "CIFAR-10"),
            ("fairness/geode", "GeoDE"),
            ("pairs", "pairs"),
            ("probe", "probe"),
        ]
        for model in ("one", "two")
    ]
    assert all(line["metrics"]["main_metric"] == line["metrics"][line["metric"]] for line in lines)
    summary = json.loads(settings.store.read("summary.json"))
    (average,) = summary["aggregates"]["one"]
    assert average["value"] == pytest.approx((lines[0]["metrics"]["acc1"] + lines[2]["metrics"]["acc_wg"]) / 2)
    assert (average["name"], average["present"], len(average["absent"])) == ("Average", ["CIFAR-10", "GeoDE"], 36)
    assert [step["rows_in"] - step["rows_out"] for step in summary["steps"]] == [0, 0, 1, 1, 1, 1, 0, 0]
    print_results(results, "w")
    printed = capsys.readouterr().out
    assert "GeoDE: 35 images evaluated; rejected: 1 undecodable_image" in printed
    assert "2 of 38" in printed
    assert "Average lacks Caltech-101, Camelyon17, " in printed


def test_a_second_run_reuses_everything_and_changes_no_file(evaluated, capsys):
    folder, settings, results = evaluated
    before = files_of(folder / "workspace")
    again = run(settings, workers=1)
    assert again == results
    assert all(result.reused for result in again)
    assert not any(result.reused for result in results)
    assert files_of(folder / "workspace") == before
    print_results(again, "w")
    assert "nothing to do: every result reused" in capsys.readouterr().out


def test_what_a_killed_run_lacks_is_made_again_and_nothing_else(evaluated):
    folder, settings, results = evaluated
    before = files_of(folder / "workspace")
    lost = result(results, "pairs", "two").outcomes.removesuffix(".parquet")
    for name in (f"{lost}.json", "eval_results.jsonl"):
        (folder / "workspace" / name).unlink()
    again = run(settings)
    assert [(found.key, found.model) for found in again if not found.reused] == [("pairs", "two")]
    after = files_of(folder / "workspace")
    assert {name for name in before if after[name] != before[name]} == {f"{lost}.json", "eval_results.jsonl"}
    assert after["eval_results.jsonl"][1] == before["eval_results.jsonl"][1]


def test_a_label_must_be_a_class(evaluated):
    folder, settings, _ = evaluated
    first = settings.tasks[0].model_dump() | {"classes": ["night", "grass"]}
    place = r"sample 0000000%d of test\.parquet \(%s\)"
    wrong = [
        ({}, rf'label of {place % (2, "label_field label")} must be 0 to 1, or one of the 2 classes .*, got "sand"'),
        ({"label_field": "class"}, rf"label of {place % (0, 'label_field class')} must be .*, got none"),
        (
            {"classes": CLASSES, "group_field": "region"},
            rf"group of {place % (0, 'group_field region')} must be given, got none",
        ),
    ]
    for changes, rule in wrong:  # as if it had not been seen at once
        with pytest.raises(InputError, match=rule):
            evaluate(config(folder, tasks=[first | changes]), workers=2, progress=Progress())


def test_what_is_wrong_with_labels_is_seen_before_any_work(evaluated):
    folder, settings, _ = evaluated
    cifar, _, _, probe = (task.model_dump() for task in settings.tasks)
    wrong = [
        (
            cifar | {"classes": ["night", "grass"]},
            r'^tasks\.cifar10: label of sample 00000002 of test\.parquet .*"sand"',
        ),
        (
            cifar | {"label_field": "labl"},
            r"^tasks\.cifar10: label_field must be a .* \(label\), got 'labl'; did you me",
        ),
        (
            cifar | {"group_field": "region"},
            r"^tasks\.cifar10: group_field must be a field of the samples \(label\), got",
        ),
        (
            probe | {"label_field": "class"},
            r"^tasks\.probe: label_field must be a field of the samples \(label\), got 'c",
        ),
    ]
    for task, rule in wrong:
        with pytest.raises(InputError, match=rule):
            check(config(folder, tasks=[task]))
    tar = {"format": "webdataset", "path": f"{folder}/sets/wds_geode_test/test/*.tar"}
    named = {"task": "classification", "name": "tar", "data": tar}
    check(config(folder, tasks=[named | {"classes": CLASSES}]))
    with pytest.raises(InputError, match=r"label of sample 0002 of 0\.tar \(label_field cls\) must be 0 to 1, .*got 2"):
        check(config(folder, tasks=[named | {"classes": CLASSES[:2]}]))


def test_a_set_must_hold_images(evaluated):
    folder, settings, _ = evaluated
    first = settings.tasks[0].model_dump()
    pq.write_table(pa.table({"image": [b"no image"], "label": [0]}), folder / "bad.parquet")
    data = {"format": "parquet", "path": f"{folder}/bad.parquet"}
    with pytest.raises(LimitExceeded, match=r"^tasks\.cifar10\.data: at most 5\.00% of the 1 samples may be rejected"):
        run(config(folder, tasks=[first | {"data": data}]))
    lenient = data | {"max_reject_fraction": 1.0}
    rule = r"^tasks\.cifar10\.data must hold at least one sound sample, got only rejects: \{'undecodable_image': 1\}"
    with pytest.raises(InputError, match=rule):
        run(config(folder, tasks=[first | {"data": lenient}]))
