"""A night, as far as it goes without Ray."""

from types import SimpleNamespace

import pytest

from pipeline.given import Given
from pipeline.nightly import night


def test_work_that_starts_over_is_given_what_the_first_attempt_was(monkeypatch):
    seen = []

    def start_run(config, shards, *, given, **_):
        seen.append(Given(dict(given.thresholds), dict(given.fits), dict(given.filters)))
        given.fits["prune"] = given.filters["like"] = "lost"
        given.thresholds["long"] = 0.5
        raise RuntimeError

    monkeypatch.setattr(night, "start_run", start_run)
    tonight = SimpleNamespace(parent=None, history=SimpleNamespace(next=1), shards=SimpleNamespace(used=[]))
    state = night._State(Given(fits={"other": "kept"}))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            night._night(None, tonight, state, workers=1, progress=None)
    assert seen == [Given(fits={"other": "kept"})] * 2
