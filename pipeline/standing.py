"""The parts of an earlier run whose verdicts stand: found in the workspace, or copied into it."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from pipeline.artifact import Artifact, find_part, publish_beside
from pipeline.integrity import damaged, sealed
from pipeline.parts import Part
from pipeline.spread import spread
from pipeline.storage import Store


def without_lost(store: Store, earlier: Artifact) -> Artifact:
    """An artifact without those of its parts that are no longer in its workspace: they stand no more."""
    listed = {path for folder in sorted(set(map(_folder, earlier.column("path")))) for path in store.find(folder)}

    def is_there(path: str) -> bool:
        # A listing may be old, and verdicts may not fall for that: what is not in it is asked for by name.
        return path in listed or store.exists(path)

    parts = [part for part in earlier.parts if is_there(part.path) and is_there(f"{_home(part.path)}/part.json")]
    return earlier if len(parts) == len(earlier.parts) else replace(earlier, parts=parts)


def take_over(
    store: Store, folder: str, source: Store, earlier: Artifact, shards: Mapping[str, str], *, workers: int
) -> dict[str, Part]:
    """The parts that stand, by id.

    Args:
        store: the workspace of the run.
        folder: of the artifact that is to list the parts; those of another workspace are copied there.
        source: the workspace that they lie in.
        earlier: the artifact that lists them.
        shards: id of each part that is asked for -> what its shard is called now.
        workers: CPU workers that copy.
    """
    parts = [replace(part, shard=shards[part.id]) for part in earlier.parts if part.id in shards]
    if source.url != store.url:
        parts = list(spread(partial(copy_part, source, store, folder), parts, workers=workers))
    return {part.id: part for part in parts}


def copy_part(source: Store, store: Store, folder: str, part: Part) -> Part:
    """Publishes a part of another workspace, byte for byte, or finds it published. Raises DamagedError."""
    home = f"{folder}/{part.id}"
    if found := find_part(store, home):
        return replace(found, shard=part.shard)
    data = source.read(part.path)
    if (got := hashlib.sha256(data).hexdigest()) != part.sha256:
        raise damaged(source, part.path, f"the SHA-256 {got}, not {part.sha256}")
    copied = replace(part, path=f"{home}/{part.path.rpartition('/')[2]}")
    publish_beside(store, copied.path, data)
    store.publish(f"{home}/part.json", sealed(asdict(copied)))
    return copied


def _home(path: str) -> str:
    return path.rpartition("/")[0]


def _folder(path: str) -> str:
    return _home(_home(path))
