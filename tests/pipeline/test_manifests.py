"""Manifests that went with a damaged part: read where they lie, and moved back when all is there again."""

import pyarrow as pa
import pytest

from operators.errors import DamagedError, WorkspaceError
from pipeline.artifact import Artifact, publish_manifest, publish_part
from pipeline.manifests import bring_back, has_recorded, read_recorded
from pipeline.parts import Part
from pipeline.quarantine import quarantine
from pipeline.storage import Store

FOLDER, IDS = f"dedup/{'a' * 16}", [f"{number:016x}" for number in range(3)]
FIT = f"{FOLDER}/fit.json"


def publish(store: Store, *numbers: int) -> Part:
    """The parts of some shards; gives the last."""
    for number in numbers:
        table = pa.table({"kept": [True, number == 1]})
        part = publish_part(store, FOLDER, Part(f"{number}.tar", IDS[number], "", 0, 0, ""), [table], table.schema)
    return part


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "work"))


@pytest.fixture
def nights(store) -> list[Artifact]:
    """Two nights: the second has one part more."""
    store.publish(FIT, b"fit")
    parts = [publish(store, number) for number in range(3)]
    artifacts = [Artifact("dedup", FOLDER, parts[:count], {"fit": FIT}) for count in (2, 3)]
    return [publish_manifest(store, artifact, {}) for artifact in artifacts]


def place(artifact: Artifact) -> dict[str, str]:
    return {"folder": artifact.folder, "manifest": artifact.manifest}


def test_a_manifest_is_read_where_it_was_moved(store, nights):
    quarantine(store, nights[0].parts[0].path)
    for night in nights:
        assert not store.exists(night.manifest)
        found = read_recorded(store, place(night))
        assert (found.folder, found.parts, found.digest) == (FOLDER, night.parts, night.digest)


def test_manifests_come_back_once_their_parts_are_there_again(store, nights):
    record = {"artifacts": {"dedup": place(nights[0])}, "clusters": {"dedup": place(nights[1])}}
    assert has_recorded(store, record)
    lost = [night.parts[0].path for night in nights] + [nights[1].parts[2].path]
    for path in lost:
        quarantine(store, path)
    assert bring_back(store) == []
    assert publish(store, 0) == nights[0].parts[0]
    assert bring_back(store) == [nights[0].manifest]
    assert not has_recorded(store, record)
    publish(store, 2)
    assert bring_back(store) == [nights[1].manifest]
    assert has_recorded(store, record)
    assert [read_recorded(store, place(night)).parts for night in nights] == [night.parts for night in nights]
    assert bring_back(store) == []


def test_a_manifest_stays_away_from_a_file_that_is_another(store, nights):
    assert set(quarantine(store, FIT)) == {FIT, *(night.manifest for night in nights)}
    store.publish(FIT, b"fat")
    assert bring_back(store) == []
    store.replace(FIT, b"fit")
    assert set(bring_back(store)) == {night.manifest for night in nights}


def test_a_manifest_that_was_written_again_is_left_alone(store, nights):
    quarantine(store, nights[0].parts[0].path)
    publish(store, 0)
    store.publish(nights[0].manifest, b"another night's")
    assert bring_back(store) == [nights[1].manifest]
    assert store.read(nights[0].manifest) == b"another night's"


def test_a_manifest_that_is_lost_or_damaged_itself(store, nights):
    name = nights[0].manifest
    store.replace(name, store.read(name).replace(b"0.tar", b"9.tar"))
    with pytest.raises(DamagedError, match=rf"^{name} must be"):
        read_recorded(store, place(nights[0]))
    quarantine(store, name)
    assert bring_back(store) == []
    for _ in range(2):
        with pytest.raises(WorkspaceError, match=rf"must have the manifests that its record names, got no {name}: run"):
            read_recorded(store, place(nights[0]))
        store.remove("damaged")
