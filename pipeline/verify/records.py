"""Looking at what is no artifact: models, checkpoints, outcomes and texts; and at how the artifacts of a run fit."""

from collections.abc import Iterator, Mapping
from typing import Any

from operators.errors import DamagedError
from pipeline.artifact import read_manifest
from pipeline.contents import trainings
from pipeline.export.claims import FOLDER as EXPORTS
from pipeline.integrity import Checksum, read_sealed, what_is_wrong
from pipeline.snapshots import FOLDER as SNAPSHOTS
from pipeline.snapshots import Snapshot, path_of, read_history
from pipeline.storage import Store
from pipeline.training.checkpoints import check_state, read_checkpoint
from pipeline.training.finished import MODEL, check_model_folder
from pipeline.verify.parts import Damage, Tally, check_file
from pipeline.weights import ORIGIN_NAME

Item = tuple[str, str]
"""What kind of thing lies at a path."""


def find_records(store: Store) -> Iterator[Item]:
    """All that is no artifact and can be checked."""
    if ORIGIN_NAME in store.names(MODEL):
        yield "model", MODEL
    for training in trainings(store):
        for kind in ("checkpoints", "diverged"):
            for step in store.names(f"{training}/{kind}"):
                if "manifest.json" in store.names(f"{training}/{kind}/{step}"):
                    yield "checkpoint", f"{training}/{kind}/{step}"
    for name in store.names("outcomes"):
        if name.endswith(".json"):
            yield "outcomes", f"outcomes/{name.removesuffix('.json')}"
    for number in read_history(store).ids:
        yield "snapshot", path_of(number)
    for name in store.names("texts"):
        yield "texts", f"texts/{name}"
    for name in store.find(EXPORTS) if EXPORTS in store.names("") else ():
        if not name.rpartition("/")[2].startswith("."):
            yield "exports", name


def check_record(store: Store, item: Item) -> tuple[str, Tally]:
    """Reads one thing whole; gives the row of the table that it belongs to."""
    kind, path = item
    try:
        if kind == "model":
            origin = check_model_folder(store, path)
            return path, Tally(1, 0, sum(file["size"] for file in origin.get("files", {}).values()))
        if kind == "checkpoint":
            checkpoint = read_checkpoint(store, path)
            check_state(store, checkpoint)
            return path.rpartition("/")[0], Tally(1, 0, checkpoint.size)
        if kind == "snapshot":
            return SNAPSHOTS, _check_snapshot(store, read_sealed(store, path))
        if kind in ("texts", "exports"):
            return kind, check_file(store, path, None)
        record = read_sealed(store, f"{path}.json")
    except DamagedError as error:
        place = str(error).partition(" ")[0]
        row = {"model": path, "checkpoint": path.rpartition("/")[0], "snapshot": SNAPSHOTS}.get(kind, kind)
        return row, Tally(1, damage=(Damage(place, "what was written", what_is_wrong(error)),))
    known = Checksum(**record["table"]) if "table" in record else None
    found = check_file(store, f"{path}.parquet", known)
    return kind, Tally(1, record.get("num_samples", 0), found.bytes, found.damage)


def _check_snapshot(store: Store, snapshot: Snapshot) -> Tally:
    """Whether the manifests of a snapshot are there and fit together, and the files of its diff are what they were."""
    found = Tally(1)
    places = [*snapshot["artifacts"].values(), *snapshot["clusters"].values()]
    for place in places:
        if not store.exists(place["manifest"]):
            rule = f"there, as snapshot {snapshot['id']} says"
            found += Tally(damage=(Damage(place["manifest"], rule, "no such file"),))
        found += Tally(damage=tuple(check_partition(store, (snapshot["artifacts"]["samples"], place))))
    for file in snapshot["diff"]["files"]:
        own = check_file(store, file["path"], Checksum(file["size"], file["sha256"]))
        found += Tally(0, file["added"] + file["removed"], own.bytes, own.damage)
    return found


def check_partition(store: Store, places: tuple[Mapping[str, Any], Mapping[str, Any]]) -> list[Damage]:
    """Whether an artifact has the same parts, with the same rows, as the samples of its run.

    Args:
        store: the workspace.
        places: where the samples lie and where the artifact does, as the record of the run says.
    """
    try:
        samples, artifact = (read_manifest(store, place["folder"], place["manifest"]) for place in places)
    except (DamagedError, FileNotFoundError):
        return []  # which is found, and said, elsewhere
    if len(samples.parts) != len(artifact.parts):
        rule = f"of as many parts as the samples of its run, {len(samples.parts)}"
        return [Damage(artifact.manifest, rule, f"{len(artifact.parts)}")]
    return [
        Damage(own.path, f"of the {part.rows} rows of shard {part.shard}", f"{own.rows} of {own.shard}")
        for part, own in zip(samples.parts, artifact.parts, strict=True)
        if (part.shard, part.rows) != (own.shard, own.rows)
    ]
