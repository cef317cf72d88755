"""Pruning by clusters on tables written by hand, without Ray."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from operators.errors import ConfigError
from operators.selection import Cutoffs, Keys
from pipeline.steps.clusters import Fit
from pipeline.steps.prune import AnyPrune, draw, ranked, stratified
from pipeline.steps.prune.by_cluster import Room

TABLE = pa.table(
    {
        "uid": pa.array([bytes([number]) * 16 for number in range(5)], pa.binary(16)),
        "cluster": pa.array([0, 0, 1, None, 0], pa.int32()),
        "similarity": pa.array([0.75, 0.5, 0.25, None, 0.5], pa.float64()),
    }
)
DBP = {"method": "dbp", "model": "raw", "clusters": 3, "keep": 6}


def prune(**settings):
    return TypeAdapter(AnyPrune).validate_python({"step": "prune"} | settings)


def cutoffs_at(keys: Keys, last_rows: list[int | None]) -> Cutoffs:
    """The rule under which each group keeps what comes up to its given row."""
    words = np.stack(keys[1:], axis=1)
    return Cutoffs(np.array([row is not None for row in last_rows]), words[[row or 0 for row in last_rows]])


def summary(verdicts) -> list[tuple[bool, str | None]]:
    return list(zip(verdicts.kept_N.tolist(), verdicts.reasons.to_pylist(), strict=True))


class TestRanked:
    def judge(self, members, last_rows, quotas):
        def rank(table):
            return ranked.keys(members, 0, "prune", table)

        return ranked.judge(rank, cutoffs_at(rank(TABLE), last_rows), quotas, members, TABLE)

    def test_the_hardest_stay_and_ties_go_to_the_lowest_uid(self):
        verdicts = self.judge("hard", [1, None], np.array([1, 0]))
        over = (False, "over_quota")
        assert summary(verdicts) == [over, (True, None), over, (False, "no_embedding"), over]
        details = verdicts.details.to_pylist()
        assert details[0] == {"cluster": 0, "distance": 0.25, "quota": 1, "threshold": 0.5}
        assert details[2] == {"cluster": 1, "distance": 0.75, "quota": 0, "threshold": None}
        assert set(details[3].values()) == {None}

    def test_the_easiest_stay(self):
        assert self.judge("easy", [0, 2], np.array([1, 1])).kept_N.tolist() == [True, False, True, False, False]

    def test_drawn_members_have_no_threshold(self):
        verdicts = self.judge("random", [0, None], np.array([1, 0]))
        assert {row["threshold"] for row in verdicts.details.to_pylist()} == {None}
        assert verdicts.kept_N[0]


class TestStratified:
    BINS = stratified.Bins(np.array([0.5, 0.25]), np.array([0.75, 0.25]), 4)

    def test_ranges_and_counts_of_parts_merge_to_those_of_the_whole(self):
        whole = stratified.find_ranges(2, TABLE)
        parts = [stratified.find_ranges(2, TABLE.slice(0, 2)), stratified.find_ranges(2, TABLE.slice(2))]
        for merged, other, expected in zip(
            stratified.widen(*parts), stratified.widen(*parts[::-1]), (self.BINS.low_K, self.BINS.high_K), strict=True
        ):
            np.testing.assert_array_equal(merged, expected)
            np.testing.assert_array_equal(other, expected)
        np.testing.assert_array_equal(whole, [self.BINS.low_K, self.BINS.high_K])
        assert stratified.count_rows(self.BINS, TABLE).tolist() == [2, 0, 0, 1, 1, 0, 0, 0]
        assert stratified.count_rows(self.BINS, TABLE.slice(3, 1)).tolist() == [0] * 8

    def test_a_row_that_was_drawn_stays(self):
        def rank(table):
            return stratified.keys(self.BINS, 0, "prune", table)

        keys = rank(TABLE)
        assert keys.group_N.tolist() == [3, 0, 4, 0]
        drawn = int(np.argmin(np.where(keys.group_N == 0, keys.value_N, np.iinfo(np.uint64).max)))
        rule = cutoffs_at(keys, [drawn, None, None, 0, None, None, None, None])
        verdicts = stratified.judge(rank, rule, np.array([[1, 0, 0, 1], [0, 0, 0, 0]]), TABLE)
        rows = [0, 1, 2, 4]
        assert verdicts.kept_N.tolist() == [row in (0, rows[drawn]) for row in range(5)]
        assert verdicts.details.to_pylist()[:3:2] == [
            {"cluster": 0, "distance": 0.25, "quota": 2, "bin": 3, "bin_quota": 1},
            {"cluster": 1, "distance": 0.75, "quota": 0, "bin": 0, "bin_quota": 0},
        ]
        assert verdicts.reasons.to_pylist()[3] == "no_embedding"


class TestQuotas:
    # Sizes 8, 2, 0; the first cluster is tight, the second loose: d_intra 0.125 and 0.5.
    FIT = Fit(np.eye(3), np.array([7.0, 1.0, 0.0]), np.array([8, 2, 0]), (), 0)

    def quotas(self, **settings) -> list[int]:
        return prune(**(DBP | settings)).quotas(self.FIT, settings.get("keep", 6))["quota"].to_pylist()

    def test_methods_by_hand(self):
        assert self.quotas(temperature=1e9, keep=4) == [2, 2, 0]
        assert self.quotas(temperature=1e-3, keep=4) == [2, 2, 0]  # all to the second, which has two
        assert self.quotas(temperature=1e-3, keep=2) == [1, 1, 0]  # and none dies out
        assert self.quotas(density="clustersize", temperature=1e-3) == [5, 1, 0]
        assert self.quotas(density="clustersize", temperature=1e-3, class_balance=1) == [4, 2, 0]
        assert self.quotas(method="cluster_balanced", keep=3) == [2, 1, 0]
        assert self.quotas(method="cluster_proportional", keep=5) == [4, 1, 0]

    def test_what_stands_is_kept_and_what_it_leaves_is_given_to_new_rows(self):
        # Of the first cluster 3 stand and 2 are new, the other 3 were dropped; of the second one is new.
        room = Room(np.array([5, 1, 0]), np.array([3, 0, 0]))
        for keep, quotas in ((4, [3, 1, 0]), (1, [3, 0, 0]), (5, [4, 1, 0]), (10, [5, 1, 0])):
            for settings in (DBP, DBP | {"method": "cluster_balanced"}, DBP | {"method": "cluster_proportional"}):
                table = prune(**settings).quotas(self.FIT, keep, room)
                assert table["quota"].to_pylist() == quotas
                assert table["standing"].to_pylist() == [3, 0, 0]
                assert table["size"].to_pylist() == [8, 2, 0]

    def test_the_table_shows_what_quotas_came_from(self):
        row = prune(**DBP, neighbours=1).quotas(self.FIT, 6).to_pylist()[1]
        assert row | {"probability": None} == {
            "cluster": 1,
            "size": 2,
            "quota": 2,
            "probability": None,
            "d_intra": 0.5,
            "d_inter": 1.0,
            "density": 0.5,
        }

    def test_too_much_is_explained(self):
        with pytest.raises(ConfigError, match=r"^prune: the number .* the 10 that are there .* with 2 to 8 members\)"):
            self.quotas(keep=11)


def test_a_draw_depends_on_uid_seed_and_name_alone():
    table = TABLE.select(["uid"])
    first = draw.draw_keys(0, "prune", table)
    again = draw.draw_keys(0, "prune", table.take([4, 3, 2, 1, 0]))
    assert first.value_N.tolist() == again.value_N[::-1].tolist()
    others = [draw.draw_keys(1, "prune", table), draw.draw_keys(0, "other", table)]
    assert len({tuple(keys.value_N.tolist()) for keys in (first, *others)}) == 3
    last = int(np.argsort(first.value_N)[1])
    verdicts = draw.judge(lambda table: draw.draw_keys(0, "prune", table), cutoffs_at(first, [last]), table)
    assert verdicts.kept_N.sum() == 2
    details = verdicts.details.to_pylist()
    assert all(0 <= row["draw"] < 1 for row in details)
    assert [row["draw"] <= row["threshold"] for row in details] == verdicts.kept_N.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "random"}, "exactly one of keep_fraction and keep"),
        ({"method": "random", "keep": 1, "keep_fraction": 0.5}, "exactly one of keep_fraction and keep"),
        ({"method": "random", "keep": 1, "temperature": 0.1}, "Extra inputs are not permitted"),
        ({"method": "dbp", "keep": 1, "model": "m"}, "needs model and clusters"),
        ({"method": "cluster_balanced", "keep": 1, "clusters": 2}, "needs model and clusters"),
        (DBP | {"members": "middle"}, "'hard', 'easy', 'random' or 'stratified'"),
        (DBP | {"bins": 0}, "greater than or equal to 1"),
        (DBP | {"bins": 5}, "must be left out without members: stratified, got 5"),
        (DBP | {"density": "uniform", "neighbours": 3}, "must be left out with density uniform, got 3"),
        (DBP | {"clusters": 10_001, "init": "kmeans++"}, r"random for more than 10,000 clusters, got kmeans\+\+"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        prune(**settings)
