"""What is measured of a night, from counts."""

import json
from functools import partial, reduce

import numpy as np
import pytest

from pipeline.nightly.profile import Drift, Profile, _merge, _most_bins, from_record, measure, to_record
from pipeline.nightly.settings import DriftSettings
from pipeline.report.histogram import Histogram, count_like, histogram, merge


def counted(values, like=None):
    values_N = np.asarray(values, np.float64)
    return count_like(values_N, like) if like else histogram(values_N, np.zeros(len(values_N), np.int64), 1, most=1024)


@pytest.fixture
def fit():
    rng = np.random.default_rng(0)
    values = {"alignment": counted(rng.normal(0.2, 0.05, 4000)), "prune.similarity": counted(rng.beta(20, 2, 4000))}
    return Profile(4100, 100, values, {"prune": np.array([1000, 1000, 2000])})


def night(fit, *, shift=0.0, far=0.0, shares=(250, 250, 500), rejected=25):
    rng = np.random.default_rng(1)
    similarity_N = rng.beta(20, 2, 1000)
    similarity_N[: int(1000 * far)] = 0.1
    values = {
        "alignment": counted(rng.normal(0.2 + shift, 0.05, 1000), fit.values["alignment"]),
        "prune.similarity": counted(similarity_N, fit.values["prune.similarity"]),
    }
    return Profile(1025, rejected, values, {"prune": np.array(shares)})


def marks(found):
    return {drift.measure: drift.mark for drift in found}


def test_more_of_the_same_is_no_drift(fit):
    found = measure(night(fit), fit, DriftSettings())
    assert [(drift.measure, drift.of) for drift in found] == [
        ("reject_rate", ""),
        ("score", "alignment"),
        ("cluster_shares", "prune"),
        ("pressure", "prune"),
    ]
    assert marks(found) == dict.fromkeys(["reject_rate", "score", "cluster_shares", "pressure"], "")
    assert found[3].value == pytest.approx(0.01, abs=0.01)


@pytest.mark.parametrize(
    ("change", "measured"),
    [
        ({"shift": 0.05}, "score"),
        ({"shift": 1e6}, "score"),  # beyond all bins
        ({"far": 0.1}, "pressure"),
        ({"shares": (500, 250, 250)}, "cluster_shares"),
        ({"rejected": 125}, "reject_rate"),
    ],
)
def test_each_change_shows_in_its_measure(fit, change, measured):
    found = measure(night(fit, **change), fit, DriftSettings())
    assert [drift.measure for drift in found if drift.mark] == [measured]


def test_a_stop_says_what_it_stops_for(fit):
    settings = DriftSettings.model_validate({"score": {"stop": 0.3}})
    (drift,) = [drift for drift in measure(night(fit, shift=0.1), fit, settings) if drift.mark]
    assert drift.mark == "stop"
    assert drift.sentence.startswith("drift: score of alignment is 0.")
    assert "above the 0.3 of nightly.drift.score.stop; up to 0." in drift.sentence
    assert Drift(**json.loads(json.dumps(drift.__dict__))) == drift


def test_what_has_no_rows_is_not_measured(fit):
    empty = Profile(3, 3, {"alignment": counted([], fit.values["alignment"])}, {"prune": np.zeros(3, np.int64)})
    assert [drift.measure for drift in measure(empty, fit, DriftSettings())] == ["reject_rate"]
    assert measure(Profile(), fit, DriftSettings()) == []


def test_a_profile_survives_its_record(fit):
    again = from_record(json.loads(json.dumps(to_record(fit))))
    assert to_record(again) == to_record(fit)


def test_a_night_is_counted_in_the_bins_of_the_first_however_many_those_are():
    for bins in (1, 1024, 1026):
        fit = Profile(values={"alignment": Histogram(-10, 0, np.ones((1, bins), np.int64))})
        parts = [Profile(values={"alignment": counted([x], fit.values["alignment"])}) for x in (-1.0, 0.0005, 9.0)]
        whole = reduce(partial(_merge, _most_bins(fit)), parts)
        assert whole.values["alignment"].counts_SB.shape == (1, bins + 2)
        assert whole.values["alignment"].counts_SB[0, [0, 1, -1]].tolist() == [1, 1, 1]


def test_counts_like_those_of_another_do_not_depend_on_the_split():
    like = counted([-0.5, 0.25, 0.75])
    values = np.array([-9.0, -0.5, 0.1, 0.74, 0.75, 0.76, 5.0, np.nan])
    whole = count_like(values, like)
    parts = merge(count_like(values[:3], like), count_like(values[3:], like), most=2000)
    assert whole.counts_SB.tolist() == parts.counts_SB.tolist()
    assert whole.counts_SB[0, 0] == 1  # below all
    assert whole.counts_SB[0, -1] == 2  # above the bin of the largest
    assert whole.total == 7
