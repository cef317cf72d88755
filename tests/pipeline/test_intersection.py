"""Intersections without Ray: what a config may say, and how verdicts are put together."""

import numpy as np
import pyarrow as pa
import pytest

from operators.errors import ConfigError, InputError
from pipeline.config.loader import canonical, load_config
from pipeline.curation import Curation
from pipeline.steps.intersection import judge

HEAD = """
pool: {format: webdataset, path: pool/*.tar}
workspace: w
models: {raw: {library: pixels}}
steps:
"""
IMAGES = "{step: image_based, model: raw, clusters: 3, reference: [{format: images, path: photographs}]}"


def load(folder, steps):
    path = folder / "curate.yaml"
    path.write_text(HEAD + steps)
    return load_config(str(path), Curation)


def intersection(*steps):
    return "  - step: intersection\n    of:\n" + "".join(f"      - {step}\n" for step in steps)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("{step: score, model: raw}", r"score must be a step that drops samples, got score .*curate.yaml:9"),
        (IMAGES, "image_based.name must be unique in the intersection, got 'image_based' again"),
        ("{step: filter, column: a, keep: -1}", r"filter.keep must be at least 0, got -1 .*curate.yaml:9"),
        ("{step: filter, colum: a, keep: 1}", "filter.colum is not a known key, did you mean column"),
        (
            "{step: filter, score: a, keep: 1}",
            r"must read the score of an earlier step, got 'a' .*curate.yaml:9",
        ),
        ("{step: prune, method: dbp, model: clip, clusters: 2, keep: 1}", "model must name one of the models .raw."),
        ("{step: crop}", "step must be one of .*got 'crop'"),
    ],
)
def test_errors_name_the_inner_step_and_its_line(tmp_path, inner, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, intersection(IMAGES, inner))


def test_one_step_is_no_intersection(tmp_path):
    with pytest.raises(ConfigError, match="of must have at least 2 items"):
        load(tmp_path, intersection(IMAGES))


def test_it_needs_what_its_steps_need_and_nests(tmp_path):
    inner = "{step: intersection, of: [{step: filter, column: a, keep: 1}, {step: rules, min_side: 9}]}"
    config = load(tmp_path, intersection(IMAGES, inner))
    (step,) = config.steps
    assert step.judges
    assert list(step.embeddings()) == [("raw", "image")]
    assert [inner.title for _, inner in step.inner] == ["image_based", "intersection"]
    assert Curation.model_validate(canonical(config)) == config


def test_paths_inside_become_absolute_and_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = load(tmp_path, intersection(IMAGES, "{step: deny, uids: out.txt}")).resolved().steps[0]
    assert step.of[0].reference[0].path == str(tmp_path / "photographs")
    assert step.of[1].uids == str(tmp_path / "out.txt")
    with pytest.raises(InputError, match="photographs"):
        step.check()


def test_the_first_step_that_drops_a_row_is_the_reason_and_all_are_in_the_details():
    kept = {"a": [True, False, True, False], "b": [True, True, False, False]}
    detail = pa.StructArray.from_arrays([pa.array([0.9, 0.1, 0.8, 0.2])], names=["value"])
    table = pa.table(
        {
            "a/kept": kept["a"],
            "a/reason": pa.array([None, "low", None, "low"]),
            "a/detail": detail,
            "b/kept": kept["b"],
            "b/reason": pa.array([None, None, "far", "far"]),
        }
    )
    verdicts = judge(("a", "b"), table)
    assert verdicts.kept_N.tolist() == [True, False, False, False]
    assert verdicts.reasons.to_pylist() == [None, "not_in_a", "not_in_b", "not_in_a"]
    assert verdicts.details.to_pylist() == [
        {"a": None, "a.value": 0.9, "b": None},
        {"a": "low", "a.value": 0.1, "b": None},
        {"a": None, "a.value": 0.8, "b": "far"},
        {"a": "low", "a.value": 0.2, "b": "far"},
    ]
    assert verdicts.kept_N.dtype == np.bool_


def test_no_rows():
    table = pa.table({"a/kept": pa.array([], pa.bool_()), "a/reason": pa.array([], pa.string())})
    assert judge(("a",), table).kept_N.tolist() == []
