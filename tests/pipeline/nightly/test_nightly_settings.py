"""The config of a nightly job: defaults, what is refused, and where a problem is said to be."""

import pytest
import yaml

from operators.errors import ConfigError
from pipeline.config.loader import load_config
from pipeline.nightly.settings import Nightly
from pipeline.record import recorded_settings

BASE = {"pool": {"format": "webdataset", "path": "/pool/*.tar"}, "workspace": "/work"}


@pytest.fixture
def load(tmp_path):
    def loaded(*overrides, **nightly):
        path = tmp_path / "nightly.yaml"
        path.write_text(yaml.safe_dump(BASE | ({"nightly": nightly} if nightly else {})))
        return load_config(str(path), Nightly, overrides)

    return loaded


def test_defaults_warn_and_never_stop_for_drift(load):
    settings = load().nightly
    assert (settings.policy, settings.changed, settings.vanished) == ("append", "stop", "stop")
    drift = settings.drift
    assert [drift.reject_rate.warn, drift.score.warn, drift.cluster_shares.warn, drift.pressure.warn] == [
        *(0.02, 0.1, 0.1, 0.03)
    ]
    assert {getattr(drift, name).stop for name in type(drift).model_fields} == {None}


def test_who_sets_a_stop_keeps_the_warning(load):
    drift = load(
        drift={"score": {"stop": 0.3}, "pressure": {"stop": 0.01}, "reject_rate": {"warn": None}}
    ).nightly.drift
    assert (drift.score.warn, drift.score.stop) == (0.1, 0.3)
    assert (drift.pressure.warn, drift.pressure.stop) == (0.01, 0.01)
    assert drift.reject_rate.warn is None


@pytest.mark.parametrize(
    ("nightly", "message"),
    [
        ({"drift": {"score": {"warn": 0.2, "stop": 0.1}}}, r"nightly\.drift\.score\.stop must be at least warn, 0\.2"),
        ({"drift": {"scores": {}}}, r"nightly\.drift\.scores is not a known key, did you mean score\?"),
        ({"changed": "as_old"}, r"nightly\.changed must be one of stop, leave_out, as_new, got 'as_old'"),
        ({"vanished": "as_new"}, r"nightly\.vanished must be one of stop, leave_out, got 'as_new'"),
    ],
)
def test_mistakes_are_named(load, nightly, message):
    with pytest.raises(ConfigError, match=message):
        load(**nightly)


def test_an_override_makes_the_section(load):
    assert load("nightly.policy=rebalance").nightly.policy == "rebalance"


def test_a_nightly_job_is_given_nothing(load):
    with pytest.raises(ConfigError, match="given must be left out of a nightly config"):
        load("given={workspace: /other, snapshot: 1}")


def test_what_is_recorded_is_a_curation(load):
    assert "nightly" not in recorded_settings(load(policy="rebalance"))
