"""What a run is given of earlier ones: written by hand, without Ray."""

import numpy as np
import pyarrow as pa
import pytest

from operators.errors import ConfigError, DamagedError, WorkspaceError
from pipeline.artifact import Artifact, publish_manifest, publish_part, read_columns
from pipeline.curation import Curation
from pipeline.duplicates.layout import meeting_new
from pipeline.given import Given, bring, check_order, second_looks, standing_titles
from pipeline.parts import Part
from pipeline.quarantine import quarantine
from pipeline.standing import copy_part, take_over, without_lost
from pipeline.storage import Store
from pipeline.verify.folders import read_folder

HASH, OTHER, IDS = "a" * 16, "b" * 16, [f"{number:016x}" for number in range(3)]
CLUSTERED = {"model": "raw", "clusters": 4}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "work"))


def publish(store: Store, folder: str = f"dedup/{HASH}", numbers=(0, 1)) -> Artifact:
    """Verdicts of some shards."""
    parts = []
    for number in numbers:
        table = pa.table({"kept": [True, number == 1]})
        draft = Part(f"{number}.tar", IDS[number], "", 0, 0, "", {"in": 2, "kept": 1 + (number == 1)}, "mask")
        parts.append(publish_part(store, folder, draft, [table], table.schema))
    return publish_manifest(store, Artifact("dedup", folder, tuple(parts)), {})


def config(*steps: dict) -> Curation:
    source = {"format": "webdataset", "path": "pool/*.tar"}
    models = {"raw": {"library": "pixels", "size": 4}}
    return Curation.model_validate({"pool": source, "workspace": "work", "models": models, "steps": steps})


def test_parts_of_the_same_shards_stand_where_they_lie(store):
    earlier = publish(store)
    found = take_over(store, f"dedup/{OTHER}", store, earlier, {IDS[1]: "moved.tar", IDS[2]: "2.tar"}, workers=1)
    assert {id_: (part.shard, part.path) for id_, part in found.items()} == {
        IDS[1]: ("moved.tar", earlier.parts[1].path)
    }


def test_parts_that_are_lost_stand_no_more(store):
    earlier = publish(store)
    assert without_lost(store, earlier) is earlier
    store.remove(earlier.parts[1].path)
    left = without_lost(store, earlier)
    assert list(left.parts) == list(earlier.parts)[:1]
    assert left.digest != earlier.digest


def test_a_listing_that_is_old_lets_nothing_fall(store, monkeypatch):
    earlier = publish(store)
    find = Store.find
    monkeypatch.setattr(
        Store, "find", lambda self, name: {k: v for k, v in find(self, name).items() if IDS[1] not in k}
    )
    assert without_lost(store, earlier) is earlier
    store.remove(f"dedup/{HASH}/{IDS[1]}/part.json")
    assert list(without_lost(store, earlier).parts) == list(earlier.parts)[:1]


def test_parts_of_another_workspace_are_copied_and_checked(store, tmp_path):
    part, other = publish(store).parts[0], Store(str(tmp_path / "other"))
    copied = copy_part(store, other, f"dedup/{OTHER}", part)
    assert (copied.sha256, copied.path.split("/")[1]) == (part.sha256, OTHER)
    assert read_columns(other, copied.path).equals(read_columns(store, part.path))
    assert copy_part(store, other, f"dedup/{OTHER}", part) == copied
    store.replace(part.path, b"something else")
    with pytest.raises(DamagedError, match=r"got the SHA-256"):
        copy_part(store, other, f"dedup/{HASH}", part)


def test_a_damaged_part_goes_with_every_manifest_that_lists_it(store):
    earlier = publish(store)
    mine = publish(store, f"dedup/{OTHER}", (2,))
    listed = publish_manifest(store, Artifact("dedup", f"dedup/{OTHER}", (*earlier.parts, *mine.parts)), {})
    alone = publish(store, f"dedup/{'c' * 16}")
    moved = quarantine(store, earlier.parts[0].path)
    assert set(moved) == {
        earlier.manifest,
        listed.manifest,
        earlier.parts[0].path,
        f"dedup/{HASH}/{IDS[0]}/part.json",
    }
    assert store.exists(alone.manifest)
    assert store.exists(mine.manifest)


def test_parts_of_other_folders_are_looked_at_there_unless_they_are_gone(store):
    earlier = publish(store)
    mine = publish(store, f"dedup/{OTHER}", (2,))
    publish_manifest(store, Artifact("dedup", f"dedup/{OTHER}", (*earlier.parts, *mine.parts)), {})
    assert [path for path, _ in read_folder(store, f"dedup/{OTHER}")[1]] == [f"dedup/{OTHER}/{IDS[2]}/"]
    store.remove(f"dedup/{HASH}/{IDS[0]}")
    looked_at = {path for path, _ in read_folder(store, f"dedup/{OTHER}")[1]}
    assert looked_at == {f"dedup/{OTHER}/{IDS[2]}/", f"dedup/{HASH}/{IDS[0]}/"}


def test_files_that_are_given_come_along_into_another_workspace(store, tmp_path):
    other = Store(str(tmp_path / "other"))
    given = Given({"best": 0.5}, {"prune": f"prune.clusters/{HASH}/given.npz"}, {"like": f"like.training/{HASH}/x"})
    for path in (*given.fits.values(), *given.filters.values()):
        store.replace(path, path.encode())
    brought = bring(given, store, other)
    assert brought == given
    assert {name: other.read(name) for name in other.find("")} == {name: name.encode() for name in store.find("")}
    brought.thresholds["worst"] = 0.0
    assert given.thresholds == {"best": 0.5}
    assert bring(given, store, store) == given


def test_a_given_file_that_is_lost_at_its_source(store, tmp_path):
    other, path, filter_ = Store(str(tmp_path / "other")), f"prune.clusters/{HASH}/given.npz", f"x.training/{HASH}/x"
    store.replace(f"prune.clusters/{HASH}/fit-{OTHER}.npz", b"the same centroids")
    bring(Given(fits={"prune": path}), store, other)
    assert other.read(path) == b"the same centroids"
    store.remove(f"prune.clusters/{HASH}")
    for given, lost in ((Given(fits={"prune": path}), path), (Given(filters={"like": filter_}), filter_)):
        with pytest.raises(WorkspaceError, match=rf"work must have the fits and filters .*, got no {lost}: give "):
            bring(given, store, other)


def test_what_stands_by_the_policy():
    steps = config(
        {"step": "rules", "min_side": 20},
        {"step": "exact_dedup"},
        {"step": "filter", "column": "bytes", "keep_fraction": 0.5},
        {"step": "semantic_dedup", "name": "near", "model": "raw", "epsilon": 0.01},
        {"step": "prune", "method": "random", "keep": 3},
    ).steps
    assert standing_titles(steps, "append") == ["unique_uid", "exact_dedup", "near", "prune"]
    assert standing_titles(steps, "rebalance") == ["unique_uid", "exact_dedup", "near"]
    for step in steps:
        step.check_nightly()


@pytest.mark.parametrize(
    ("step", "got"),
    [
        (
            {"step": "filter", "column": "bytes", "keep": 2, "per": "kind"},
            "filter must be .*, got per: kind: each value",
        ),
        ({"step": "filter", "column": "bytes", "min": 2, "diversity": CLUSTERED}, "got diversity: it is measured"),
        ({"step": "sweep", **CLUSTERED, "clusters": [2], "epsilons": [0.01]}, "sweep must be .*, got a sweep: it"),
        ({"step": "image_based", **CLUSTERED, "reference": [{"format": "images", "path": "x"}]}, "got image_based: "),
        ({"step": "prune", "method": "prototypes", **CLUSTERED}, "prune must be .*, got method prototypes: its"),
        ({"step": "prune", "method": "hierarchical", **CLUSTERED, "levels": [2], "keep": 2}, "got method hierarchical"),
        (
            {"step": "intersection", "of": [{"step": "exact_dedup"}, {"step": "rules", "min_side": 20}]},
            "intersection must be .*, got an intersection",
        ),
    ],
)
def test_what_cannot_be_done_night_by_night_is_refused(step, got):
    with pytest.raises(ConfigError, match=got):
        config(step).steps[0].check_nightly()


def test_only_clusters_that_meet_new_rows_are_compared():
    pairs_P2 = np.array([[0, 1], [1, 2], [3, 4]])
    searched_K, meeting_P2 = meeting_new(np.array([0, 0, 5, 0, 0, 1]), pairs_P2)
    assert searched_K.tolist() == [False, True, True, False, False, True]
    assert meeting_P2.tolist() == [[1, 2]]
    searched_K, meeting_P2 = meeting_new(np.zeros(6, np.int64), pairs_P2)
    assert not searched_K.any()
    assert meeting_P2.shape == (0, 2)


def test_a_draw_before_verdicts_that_stand():
    draw, dedup = {"step": "prune", "method": "random", "keep": 3}, {"step": "exact_dedup"}
    deny = {"step": "deny", "uids": "list.txt"}
    for steps in ([dedup, draw, deny], [dedup]):
        check_order(config(*steps).steps, "rebalance")
    check_order(config(draw, dedup).steps, "append")
    with pytest.raises(ConfigError, match="exact_dedup must come before prune where quotas are drawn anew"):
        check_order(config(draw, dedup).steps, "rebalance")


def test_lists_are_looked_at_again_in_the_end():
    steps = config({"step": "deny", "name": "out", "uids": "list.txt"}, {"step": "exact_dedup"}).steps
    (again,) = second_looks(steps)
    assert (again.title, again.stands, again.uids, again.again) == ("out.again", "never", "list.txt", None)
    assert standing_titles(steps, "rebalance") == ["unique_uid", "out", "exact_dedup"]
