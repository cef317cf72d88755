"""How Ray is started, without starting it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from operators.errors import ConfigError
from pipeline.engine import Resources, engine


@pytest.fixture
def ray_starts(monkeypatch):
    """Ray on two live nodes, of 2 and 4 CPUs, and a dead one of 64; returns how it was started each time."""
    starts = []
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]

    def init(**options):
        policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
        starts.append(options | {"PYTHONPATH": os.environ.get("PYTHONPATH"), "policy": policy})

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, replacement in (
        ("is_initialized", lambda: False),
        ("init", init),
        ("shutdown", lambda: None),
        ("nodes", lambda: nodes),
        ("cluster_resources", lambda: {"CPU": 6.0}),
    ):
        monkeypatch.setattr(f"ray.{name}", replacement)
    return starts


@pytest.fixture
def asked(monkeypatch):
    """What the cluster was asked for, and whether it was let go of; nothing comes."""
    requests = []

    def placement_group(bundles):
        requests.append(bundles)
        return SimpleNamespace(wait=lambda seconds: False)

    monkeypatch.setattr("pipeline.engine.placement_group", placement_group)
    monkeypatch.setattr("pipeline.engine.remove_placement_group", lambda group: requests.append("let go"))
    return requests


def test_a_cluster_is_given_the_time_to_grow_to_what_the_config_asks_for(ray_starts, asked, caplog):
    with engine(Resources(workers=8, threads=3)) as workers:
        assert workers == 8
    assert asked == [[{"CPU": 3}] * 3, "let go"]
    said = "waiting for the cluster to have 8 CPUs (resources.workers), it has 6"
    assert caplog.messages == [said, "going on with 6 CPUs"]


def test_nothing_is_waited_for_where_the_cpus_are_there(ray_starts, asked):
    with engine(Resources(workers=6)) as workers:
        assert workers == 6
    assert asked == []


def test_a_cluster_without_cpus_is_told_how_far_it_may_grow(ray_starts, asked, monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", dict)
    message = "resources.workers must be set to what it may grow to for a cluster that has no CPUs, got None"
    with pytest.raises(ConfigError, match=message), engine(Resources()):
        pass
    message = "resources.workers must be what its nodes can have for a cluster that has no CPUs, got 4"
    with pytest.raises(ConfigError, match=message), engine(Resources(workers=4)):
        pass


def test_more_threads_than_any_node_has_would_wait_forever(ray_starts):
    with engine(Resources(threads=4)) as workers:
        assert workers == 6
    message = "resources.threads must be at most the 4 CPUs of the largest node, got 5"
    with pytest.raises(ConfigError, match=message), engine(Resources(threads=5)):
        pass


def test_without_an_address_ray_starts_here(ray_starts):
    with engine(Resources(workers=2)):
        assert ray_starts[0]["address"] == "local"
        assert ray_starts[0]["num_cpus"] == 2


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="the system has no such policies")
def test_what_starts_here_is_batch_work_and_the_driver_is_not(ray_starts):
    before = os.sched_getscheduler(0)
    with engine(Resources(workers=2)):
        assert os.sched_getscheduler(0) == before
    assert ray_starts[0]["policy"] == os.SCHED_BATCH


def test_a_system_that_knows_no_batch_work_does_without(ray_starts, monkeypatch):
    for name in ("sched_setscheduler", "SCHED_OTHER", "SCHED_BATCH"):
        monkeypatch.delattr(os, name, raising=False)
    with engine(Resources(workers=2)):
        assert ray_starts


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_workers_find_the_working_folder_last(ray_starts, tmp_path, monkeypatch, before):
    monkeypatch.chdir(tmp_path)
    if before is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", before)
    with engine(Resources()):
        assert os.environ.get("PYTHONPATH") == before
    paths = ray_starts[0]["PYTHONPATH"].split(os.pathsep)
    assert paths[-1] == str(tmp_path)
    assert str(Path(os.__file__).parent) in paths[:-1]
