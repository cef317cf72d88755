"""Pruning by prototypes on tables written by hand, without Ray."""

import json
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from operators.errors import InputError
from operators.selection import Cutoffs
from pipeline.clustering import KMeansSettings
from pipeline.columns import embedding_field, fixed_binary
from pipeline.pool import Source
from pipeline.steps.prune import AnyPrune, classes, distances
from pipeline.steps.prune.classes import labels, list_names, merge_classes, merge_names, sum_classes
from pipeline.steps.prune.difficulty import Judge, Ranking, count_others, count_prototypes, unsafe_keys
from pipeline.steps.prune.distances import Measure, Prototypes, find_lacks, measure_rows, read_prototypes
from pipeline.storage import Store

TARGET = {"format": "images", "path": "t"}
NONE = None


def prune(**settings):
    return TypeAdapter(AnyPrune).validate_python({"step": "prune", "method": "prototypes", "model": "raw"} | settings)


def table(*rows) -> pa.Table:
    """Rows (x or None, metadata or None)."""
    x_ND = np.array([x or (0, 0) for x, _ in rows], np.float16).reshape(-1, 2)
    texts = [None if fields is None else json.dumps(fields) for _, fields in rows]
    column = fixed_binary(x_ND, np.array([x is not None for x, _ in rows], bool))
    schema = pa.schema([embedding_field("embedding", 2), ("metadata", pa.string())])
    return pa.table([column, pa.array(texts, pa.string())], schema=schema)


class TestClasses:
    def test_text_and_whole_numbers_are_classes(self):
        values = ["a", 3, "3", 3.0, True, 0.5, None, ["a"], {"a": 1}, ""]
        texts = pa.chunked_array([[json.dumps({"kind": value}) for value in values] + ["{}", NONE]])
        expected = ["a", "3", "3", "3", "true", NONE, NONE, NONE, NONE, "", NONE, NONE]
        assert labels("kind", texts).to_pylist() == expected

    def test_sums_by_hand(self):
        rows = table(((1, 0), {"c": "b"}), ((0, 1), {"c": "b"}), ((0, 1), {"c": "a"}), ((1, 0), {}), (NONE, {"c": "z"}))
        found = sum_classes("c", rows)
        assert found.names == ("a", "b")
        assert found.sums_CD.tolist() == [[0, 1], [1, 1]]
        assert found.counts_C.tolist() == [1, 2]

    def test_no_rows(self):
        found = sum_classes("c", table())
        assert (found.names, found.sums_CD.shape, found.counts_C.tolist()) == ((), (0, 2), [])
        assert list_names("c", table()) == ()

    @given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12), st.integers(1, 5), st.randoms())
    def test_parts_in_any_order_merge_to_the_whole(self, names, num_parts, random):
        rng = np.random.default_rng(len(names))
        rows = table(*((tuple(rng.normal(size=2)), {"c": name}) for name in names))
        parts = [rows.take(pa.array(range(i, len(names), num_parts), pa.int64())) for i in range(num_parts)]
        random.shuffle(parts)
        merged = reduce(lambda a, b: merge_classes("prune", "c", a, b), (sum_classes("c", part) for part in parts))
        whole = sum_classes("c", rows)
        assert merged.names == whole.names
        np.testing.assert_array_equal(merged.sums_CD, whole.sums_CD)
        np.testing.assert_array_equal(merged.counts_C, whole.counts_C)
        alone = reduce(lambda a, b: merge_names("prune", "c", a, b), (list_names("c", part) for part in parts))
        assert alone == whole.names

    def test_too_many(self, monkeypatch):
        monkeypatch.setattr(classes, "MAX_CLASSES", 1)
        a, b = (sum_classes("c", table(((1, 0), {"c": name}))) for name in "ab")
        with pytest.raises(InputError, match=r"prune\.label must be a field of at most 1 values, got 'c', which has 2"):
            merge_classes("prune", "c", a, b)


class TestDistances:
    PROTOTYPES = Prototypes(np.array([[1.0, 0], [0, 1], [-1, 0]]), ("a", "b", "c"))
    ROWS = table(((1, 0), {"k": "b"}), ((0, 1), {"k": "b"}), ((0, 1), {"k": "d"}), ((0, 1), {}), (NONE, {}))

    def measure(self, tmp_path, rows, *, clusters=None, **changes) -> list[dict]:
        store = Store(str(tmp_path))
        store.publish("p.npz", distances._npz(self.PROTOTYPES))
        kmeans = KMeansSettings(clusters=3) if clusters else None
        what = Measure("prune", "raw", kmeans, **({"label": "k", "margin": False, "grouping": "class"} | changes))
        read_prototypes.cache_clear()
        return measure_rows(store, "p.npz", what, None, rows).to_pylist()

    def test_classes(self, tmp_path):
        found = self.measure(tmp_path, self.ROWS)
        assert found[0] == {"distance": 1.0, "prototype": 1, "group": 1, "lacks": NONE}
        assert found[1]["distance"] == 0.0
        assert [row["lacks"] for row in found[2:]] == ["unknown_label", "no_label", "no_embedding"]
        assert {row["distance"] for row in found[2:]} == {NONE}

    def test_margins(self, tmp_path):
        found = self.measure(tmp_path, self.ROWS, margin=True, grouping=NONE)[0]
        assert found["distance"] == np.sqrt(2)
        assert found["margin"] == np.sqrt(2) - 0 - 2
        assert (found["prototype"], found["other"], found["group"]) == (1, 0, 0)

    def test_clusters_are_read_from_the_table(self, tmp_path):
        rows = self.ROWS.append_column("cluster", pa.array([2, 1, 0, 0, NONE], pa.int32()))
        rows = rows.append_column("similarity", pa.array([-1.0, 1.0, 0.0, 0.0, NONE], pa.float64()))
        found = self.measure(tmp_path, rows, clusters=3, label=NONE, grouping="cluster")
        assert [row["distance"] for row in found] == [2.0, 0.0, 1.0, 1.0, NONE]
        assert [row["group"] for row in found] == [2, 1, 0, 0, NONE]
        assert [row["lacks"] for row in found] == [NONE] * 4 + ["no_embedding"]

    def test_no_rows(self, tmp_path):
        assert self.measure(tmp_path, table(), margin=True) == []
        assert find_lacks("k", ("a",), table())[1].to_pylist() == []


class TestDifficulty:
    TABLE = pa.table(
        {
            "uid": pa.array([bytes([number]) * 16 for number in range(6)], pa.binary(16)),
            "group": pa.array([0, 0, 1, NONE, 0, 1], pa.int32()),
            "prototype": pa.array([2, 2, 0, NONE, 0, 2], pa.int32()),
            "distance": pa.array([0.5, 0.75, 0.25, NONE, 0.75, 0.5], pa.float64()),
            "lacks": pa.array([NONE, NONE, NONE, "no_label", NONE, NONE], pa.string()),
        }
    )
    HARD = Ranking("distance", True, 2)
    DETAILS = {"cluster": ("prototype", NONE), "class": ("group", pa.array(["x", "y"]))}  # noqa: RUF012

    def cutoffs(self, ranking: Ranking, *rows: int | None) -> Cutoffs:
        words = np.stack(ranking.keys(self.TABLE)[1:], axis=1)
        return Cutoffs(np.array([row is not None for row in rows]), words[[row or 0 for row in rows]])

    def test_the_hardest_stay_and_ties_go_to_the_lowest_uid(self):
        judge = Judge(self.HARD, self.cutoffs(self.HARD, 1, NONE), np.array([1, 0]), self.DETAILS)
        verdicts = judge(self.TABLE)
        assert verdicts.kept_N.tolist() == [False, True, False, False, False, False]
        assert verdicts.reasons.to_pylist() == [
            "over_quota",
            NONE,
            "over_quota",
            "no_label",
            "over_quota",
            "over_quota",
        ]
        details = verdicts.details.to_pylist()
        assert details[4] == {"cluster": 0, "class": "x", "difficulty": 0.75, "threshold": 0.75, "quota": 1}
        assert details[5] == {"cluster": 2, "class": "y", "difficulty": 0.5, "threshold": NONE, "quota": 0}
        assert set(details[3].values()) == {NONE}

    def test_the_easiest_stay(self):
        easy = Ranking("distance", False, 2)
        judge = Judge(easy, self.cutoffs(easy, 0, 2), np.array([1, 1]), self.DETAILS)
        assert judge(self.TABLE).kept_N.tolist() == [True, False, True, False, False, False]

    def test_counts(self):
        assert self.HARD.count(self.TABLE).tolist() == [3, 2]
        rule = self.cutoffs(self.HARD, 1, 4)
        assert count_prototypes(self.HARD, rule, 3, self.TABLE).tolist() == [[2, 0], [0, 0], [3, 2]]

    def test_the_rest_competes_as_one_group(self):
        safe = self.cutoffs(self.HARD, 1, 4)  # rows 1 and 5
        rest = unsafe_keys(self.HARD, safe, self.TABLE)
        assert rest.group_N.tolist() == [0, 0, 0]
        last = np.stack(rest[1:], axis=1)[[0]]  # row 0, behind row 4
        others = Cutoffs(np.array([True]), last)
        assert count_others(self.HARD, safe, others, self.TABLE).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs model, and clusters or label"),
        ({"model": None, "clusters": 3}, "needs model, and clusters or label"),
        ({"clusters": 3, "keep": 1, "quantile": 0.5}, "at most one of .*, got keep and quantile"),
        ({"label": "k", "per": "cluster"}, "needs clusters for per: cluster"),
        ({"clusters": 3, "per": "class"}, "needs label for per: class"),
        ({"label": "k", "class_balance": 0.5}, "needs per: global for class_balance"),
        ({"label": "k", "clusters": 3}, "to use label beside clusters"),
        ({"label": "k", "clusters": 3, "per": "global"}, "to use label beside clusters"),
        ({"label": "k", "quantile": 1.0}, "less than 1"),
        ({"clusters": 3, "members": "random"}, "'hard' or 'easy'"),
        ({"clusters": 2, "difficulty": "margin"}, "needs at least 3 clusters for difficulty: margin, got 2"),
        ({"clusters": 9, "merge": {"to": 2}, "difficulty": "margin"}, "at least 3 for difficulty: margin, got 2"),
        ({"label": "k", "iterations": 5}, "must be left out without clusters, got 5"),
        ({"label": "k", "merge": {"to": 3}}, "must be left out without clusters"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        prune(**settings)


@pytest.mark.parametrize(
    ("settings", "grouping"),
    [
        ({"clusters": 3}, "cluster"),
        ({"label": "k"}, "class"),
        ({"label": "k", "clusters": 3, "per": "class"}, "class"),
        ({"label": "k", "per": "global"}, None),
        ({"clusters": 3, "per": "global", "class_balance": 0.5}, "cluster"),
        ({"clusters": 3, "label": "k", "per": "global", "class_balance": 0.5}, "class"),
    ],
)
def test_what_rows_are_compared_within(settings, grouping):
    assert prune(**settings).grouping == grouping


def test_rows_above_the_quantile_are_counted_in_each_group_or_in_all():
    sizes = np.array([11, 20, 0, 1])
    assert prune(clusters=4)._rows_to_keep(40, sizes).tolist() == [1, 2, 0, 0]
    assert prune(clusters=4, per="global", quantile=0.5)._rows_to_keep(40, sizes).tolist() == [16]
    with pytest.raises(InputError, match=r"at most the 32 rows that have an embedding, got 36 of the 40"):
        prune(clusters=4, keep_fraction=0.9)._rows_to_keep(40, sizes)


def test_a_target_is_resolved_checked_and_no_part_of_the_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = prune(label="k", target=TARGET).resolved()
    assert step.target == Source(format="images", path=f"{tmp_path}/t")
    with pytest.raises(InputError, match="must exist"):
        step.check()
    assert prune(label="k").resolved().target is None


def test_too_few_prototypes_are_explained():
    what = Measure("prune", "raw", None, "k", margin=True, grouping="class")
    with pytest.raises(InputError, match=r"prune\.difficulty margin must compare .*, got 2 classes \(a, b\)"):
        distances.check_enough(Prototypes(np.zeros((2, 2)), ("a", "b")), what)
