"""Filters on tables written by hand, without Ray: ranks, ranges, thresholds, groups, and the settings."""

import json
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.errors import InputError
from operators.selection import Cutoffs, Keys, order_key
from pipeline.artifact import parquet_bytes
from pipeline.curate import check
from pipeline.curation import Curation
from pipeline.steps import filter, groups, values
from pipeline.steps.registry import Intersection
from pipeline.steps.thresholds import Threshold, ThresholdFile
from pipeline.steps.values import Ranking
from pipeline.storage import Store

HIGHEST = Ranking(partial(values.numbers, None), highest=True)
LOWEST = Ranking(partial(values.numbers, None), highest=False)
STORED = Threshold(
    score="alignment",
    scored_by="a model",
    best="highest",
    value=0.25,
    keep_fraction=0.15,
    subset=100,
    rows=1000,
    kept_share=0.14,
    confidence=0.99,
    pool_interval=(0.1, 0.2),
    source_interval=(0.1, 0.2),
    seed=0,
)


def table(*numbers, **columns):
    uids = pa.array([bytes([row]) * 16 for row in range(len(numbers))], pa.binary(16))
    return pa.table({"uid": uids, "value": pa.array(numbers, pa.float64()), **columns})


def summary(verdicts) -> list[tuple[bool, str | None]]:
    return list(zip(verdicts.kept_N.tolist(), verdicts.reasons.to_pylist(), strict=True))


def cutoff_at(keys: Keys, some: bool) -> Cutoffs:
    """The rule that keeps one group's rows up to and including a given one."""
    last = [[words[0] if some else 0 for words in keys[1:]]]
    return Cutoffs(np.array([some]), np.array(last, dtype=np.uint64))


def test_a_range_includes_its_ends():
    verdicts = filter.judge_range(0.25, 0.5, HIGHEST.values, table(0.25, 0.5, 0.51, None, float("nan")))
    assert summary(verdicts) == [
        (True, None),
        (True, None),
        (False, "out_of_range"),
        (False, "no_value"),
        (False, "no_value"),
    ]
    assert verdicts.details.to_pylist()[2:4] == [
        {"value": 0.51, "min": 0.25, "max": 0.5},
        {"value": None, "min": 0.25, "max": 0.5},
    ]
    assert filter.judge_range(None, 0.3, HIGHEST.values, table(0.25, 0.5, -np.inf)).kept_N.tolist() == [
        True,
        False,
        True,
    ]


@given(st.lists(st.sampled_from([None, -1.0, 0.0, -0.0, 0.5, 2.0]), max_size=8), st.data(), st.booleans())
def test_ranks_keep_exactly_n_with_ties_to_the_lowest_uid(cells, data, highest):
    ranking = HIGHEST if highest else LOWEST
    rows = [row for row, number in enumerate(cells) if number is not None]
    order = sorted(rows, key=lambda row: (-cells[row] if highest else cells[row], row))
    keep = data.draw(st.integers(0, len(rows)))
    last = order[keep - 1] if keep else 0
    keys = ranking.keys(table(*cells))
    cutoffs = cutoff_at(keys.take(np.array([row == last for row in rows], dtype=bool)), keep > 0)
    verdicts = filter.judge_rank(ranking, cutoffs, table(*cells))
    assert np.flatnonzero(verdicts.kept_N).tolist() == sorted(order[:keep])
    reasons = ["no_value" if number is None else "below_cutoff" for number in cells]
    assert summary(verdicts) == [
        (True, None) if row in order[:keep] else (False, reasons[row]) for row in range(len(cells))
    ]


def test_a_threshold_keeps_every_row_that_reaches_it():
    verdicts = filter.judge_threshold(HIGHEST, 0.5, table(0.5, 0.5, 0.49, None))
    assert summary(verdicts) == [(True, None), (True, None), (False, "missed_threshold"), (False, "no_value")]
    assert verdicts.details.to_pylist()[2] == {"value": 0.49, "threshold": 0.5}
    assert filter.judge_threshold(LOWEST, 0.5, table(0.5, 0.51, None)).kept_N.tolist() == [True, False, False]


def test_a_row_is_ranked_in_its_group(tmp_path):
    metadata = pa.array(['{"class": "a"}', '{"class": "b"}', '{"class": "a"}', None, '{"class": "b"}'])
    rows = table(0.1, 0.9, 0.2, 0.3, None, group=metadata)
    # One row of each group, and of those without the field none.
    words = {
        "last_value": order_key(np.array([0.2, 0.9, 0.0]), descending=True),
        "last_high": np.full(3, 2**64 - 1, np.uint64),
        "last_low": np.full(3, 2**64 - 1, np.uint64),
    }
    rule = pa.table({"group": ['"a"', '"b"', "null"], "rows": [2, 2, 1], "quota": [1, 1, 0], **words})
    (tmp_path / "groups.parquet").write_bytes(parquet_bytes(rule))
    verdicts = filter.judge_groups(Store(str(tmp_path)), "groups.parquet", "class", HIGHEST, rows)
    assert summary(verdicts) == [
        (False, "below_cutoff"),
        (True, None),
        (True, None),
        (False, "below_cutoff"),
        (False, "no_value"),
    ]
    details = verdicts.details.to_pylist()
    assert details[0] == {"value": 0.1, "threshold": 0.2, "group": '"a"'}
    assert details[3] == {"value": 0.3, "threshold": None, "group": "null"}


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        (None, "null"),
        ("{}", "null"),
        ('{"class": null}', "null"),
        ('{"class": "null"}', '"null"'),
        ('{"class": 1}', "1"),
        ('{"class": true}', "true"),
        ('{"class": {"b": 1, "a": [2]}}', '{"a":[2],"b":1}'),
        ('{"class": "h\u00e9"}', '"h\u00e9"'),
    ],
)
def test_a_group_is_called_by_its_value(metadata, name):
    assert groups.group_names("class", pa.table({"group": [metadata]})).to_pylist() == [name]


def test_a_group_with_an_unwieldy_value_is_called_by_its_hash():
    cells = [json.dumps({"class": value}) for value in ("x" * 100, "x" * 101, "\ud800", "x" * 100)]
    found = groups.group_names("class", pa.table({"group": cells})).to_pylist()
    assert [len(name) for name in found] == [32] * 4
    assert found[0] == found[3]
    assert len(set(found)) == 3


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"keep": 1}, "exactly one of score, column and draw"),
            ({"keep": 1, "score": "a", "column": "b"}, "exactly one of score, column and draw"),
            ({"keep": 1, "score": "a", "draw": True}, "exactly one of score, column and draw"),
            ({"score": "a"}, "exactly one of keep_fraction, keep, a range"),
            ({"score": "a", "keep": 1, "min": 0}, "exactly one of keep_fraction, keep, a range"),
            ({"score": "a", "keep": 1, "threshold": {"file": "t"}}, "exactly one of keep_fraction, keep, a range"),
            ({"score": "a", "keep": 1, "estimate_on": 9}, "needs keep_fraction with estimate_on"),
            ({"score": "a", "min": 1, "per": "c"}, "needs keep_fraction or keep, and no estimate_on, with per"),
            ({"score": "a", "keep_fraction": 0.5, "per": "c", "estimate_on": 9}, "and no estimate_on, with per"),
            ({"draw": True, "keep_fraction": 0.5, "estimate_on": 9}, "needs score or column with estimate_on"),
            ({"score": "a", "keep_fraction": 0.5, "estimate_on": 0}, "greater than or equal to 1"),
            ({"score": "a", "keep_fraction": 0.5, "confidence": 1}, "less than 1"),
            ({"score": "a", "keep_fraction": 0.5, "confidence": 0.9}, "must be left out without estimate_on, got 0.9"),
            ({"score": "a", "min": 0, "best": "lowest"}, "must be left out with a range, .*, got lowest"),
            ({"score": "a", "min": 2, "max": 1}, "at most max \\(1.0\\), got 2.0"),
            ({"score": "a", "min": float("nan")}, "finite number"),
        ],
    )
    def test_what_does_not_go_together(self, settings, message):
        with pytest.raises(ValidationError, match=message):
            filter.Filter(step="filter", **settings)

    @pytest.mark.parametrize(
        ("settings", "quotas"),
        [({"keep_fraction": 0.5}, [0, 0, 2, 2, 4]), ({"keep": 3}, [0, 1, 3, 3, 3]), ({"keep": 0}, [0] * 5)],
    )
    def test_quotas_of_groups(self, settings, quotas):
        step = filter.Filter(step="filter", score="a", per="c", **settings)
        assert step._quotas(np.array([0, 1, 3, 4, 8])).tolist() == quotas


class TestStoredThreshold:
    def file(self, folder, text):
        path = folder / "threshold.json"
        path.write_text(text)
        return ThresholdFile(file=str(path))

    def test_it_comes_back_as_it_was_written(self, tmp_path):
        assert self.file(tmp_path, STORED.model_dump_json()).read() == STORED

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"value": "high"}, "value: Input should be a valid number"),
            ({"value": float("inf")}, "value: Input should be a finite number"),
            ({"format": "winnow-threshold-2"}, "format: Input should be 'winnow-threshold-1'"),
            ({"more": 1}, "more: Extra inputs"),
        ],
    )
    def test_what_is_no_threshold(self, tmp_path, change, message):
        text = json.dumps(STORED.model_dump(mode="json") | change)
        with pytest.raises(InputError, match=f"must be a threshold.json of Winnow's, got {message}"):
            self.file(tmp_path, text).read()

    def test_no_json_and_no_file(self, tmp_path):
        with pytest.raises(InputError, match="got the file: Invalid JSON"):
            self.file(tmp_path, "{").read()
        with pytest.raises(InputError, match="must be a readable file, got FileNotFoundError"):
            ThresholdFile(file=str(tmp_path / "none.json")).read()

    def test_a_config_is_checked_before_any_work(self, tmp_path):
        file = self.file(tmp_path, STORED.model_dump_json())
        filter.Filter(step="filter", score="a", threshold=file).check()
        with pytest.raises(InputError, match=r"filter.best must be highest, as in .*, got lowest"):
            filter.Filter(step="filter", score="a", threshold=file, best="lowest").check()

    @pytest.mark.parametrize("inside", [False, True])
    def test_one_of_another_model_is_refused_before_any_work_and_read_once(self, tmp_path, monkeypatch, inside):
        reads = []
        monkeypatch.setattr(ThresholdFile, "read", lambda file: reads.append(file) or STORED)
        step = filter.Filter(step="filter", score="a", threshold=ThresholdFile(file="t.json"))
        outer = Intersection(step="intersection", of=(step, {"step": "rules", "min_side": 1})) if inside else step
        outer.check()
        outer.check_scores({"a": "a model"}.__getitem__)
        with pytest.raises(InputError, match=r"values that filter reads .* got one of a model, .* are of another"):
            outer.check_scores({"a": "another"}.__getitem__)
        assert len(reads) == 1
        with pytest.raises(InputError, match="of a model, where the values are of column width"):
            filter.Filter(step="filter", column="width", threshold=ThresholdFile(file="t.json")).check()

    def test_a_run_checks_it_before_any_work(self, tmp_path):
        file = self.file(tmp_path, STORED.model_dump_json())
        (tmp_path / "a.png").write_bytes(b"x")
        config = {
            "pool": {"format": "images", "path": str(tmp_path)},
            "workspace": str(tmp_path / "work"),
            "steps": [
                {"step": "python", "name": "a", "function": "operator:length_hint", "gives": "score"},
                {"step": "filter", "score": "a", "threshold": file},
            ],
        }
        with pytest.raises(InputError, match=r"got one of a model, where the values are of .*operator:length_hint"):
            check(Curation.model_validate(config), dry=True)

    def test_its_path_becomes_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        step = filter.Filter(step="filter", score="a", threshold=ThresholdFile(file="t.json"))
        assert step.resolved().threshold == ThresholdFile(file=str(tmp_path / "t.json"))
        plain = filter.Filter(step="filter", score="a", keep=1)
        assert plain.resolved() == plain


class TestValues:
    def numbers(self, column, cells):
        return values.numbers(column, pa.table({"value": cells})).tolist()

    def test_columns_and_fields(self):
        assert self.numbers("width", pa.array([3, None], pa.int32())) == pytest.approx([3.0, np.nan], nan_ok=True)
        cells = ['{"a": 1}', '{"a": 0.5}', '{"b": 1}', None, '{"a": null}', '{"a": NaN}', '{"a": 1e400}']
        expected = [1.0, 0.5, np.nan, np.nan, np.nan, np.nan, np.inf]
        assert self.numbers("a", pa.array(cells)) == pytest.approx(expected, nan_ok=True)
        huge = [f'{{"a": {sign}1{"0" * 400}}}' for sign in ("", "-")]
        assert self.numbers("a", pa.array(huge)) == [np.inf, -np.inf]

    @pytest.mark.parametrize("cell", ['"high"', "true", "[1]", "{}"])
    def test_what_is_no_number(self, cell):
        assert np.isnan(self.numbers("a", pa.array([f'{{"a": {cell}}}']))).all()

    def test_a_draw_belongs_to_the_sample(self):
        rows = table(*range(8))
        drawn = values.draws(0, "filter", rows)
        assert ((drawn >= 0) & (drawn < 1)).all()
        assert values.draws(0, "filter", rows.take(list(range(7, -1, -1)))).tolist() == drawn.tolist()[::-1]
        assert set(values.draws(1, "filter", rows)).isdisjoint(drawn)
        assert set(values.draws(0, "other", rows)).isdisjoint(drawn)
