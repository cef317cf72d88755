"""Whether nodes share a disk, without the nodes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayError

from operators.errors import WorkspaceError
from pipeline import shared_disk
from pipeline.shared_disk import check_shared
from pipeline.storage import Store


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of this driver's node and others; each answers what its name says of the file, or not at all."""
    there = []

    def answer(name):
        if name == "lost":
            raise RayError
        return name != "blind"

    def ask(node_id, path):
        assert shared_disk._sees(path)
        return node_id

    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr("ray.nodes", lambda: [_node("here", 4), _node("blind", 0), *there])
    monkeypatch.setattr("ray.get", answer)
    monkeypatch.setattr(shared_disk, "_ask", ask)
    return there


def _node(name, cpus, alive=True):
    return {"NodeID": name, "NodeManagerHostname": f"{name}.example", "Alive": alive, "Resources": {"CPU": cpus}}


def test_one_node_is_asked_nothing(nodes, tmp_path):
    check_shared(Store(str(tmp_path / "w")))
    assert not (tmp_path / "w").exists()


def test_nodes_that_see_the_workspace_or_are_gone_stop_nothing(nodes, tmp_path):
    nodes += [_node("sees", 1), _node("lost", 1), _node("blind", 1, alive=False)]
    check_shared(Store(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_see_it_is_named(nodes, tmp_path):
    nodes += [_node("sees", 1), _node("blind", 1)]
    with pytest.raises(WorkspaceError, match=r"must be a folder that all nodes .* got one that blind\.example cannot"):
        check_shared(Store(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_closed_to_a_node_is_not_seen_there(monkeypatch):
    def closed(path):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(Path, "is_file", closed)
    assert not shared_disk._sees("/w/.probe")


def test_an_object_store_is_shared_by_nature(nodes):
    nodes.append(_node("blind", 1))
    check_shared(Store("memory://bucket/w"))
