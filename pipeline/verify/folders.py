"""Looking at artifacts, folder by folder: every manifest, every part that one lists, every file that one names.

A folder of few parts is one task. Of a larger one a task reads the manifests and hands out the parts in batches, which
other tasks look at: the parts never pass through the driver, which keeps sums and what is damaged.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import ray

from operators.errors import DamagedError
from pipeline.artifact import Artifact, named_files, read_manifest
from pipeline.contents import FOLDER, HASH, MANIFEST
from pipeline.integrity import Checksum, read_sealed, what_is_wrong
from pipeline.parts import Part
from pipeline.spread import spread
from pipeline.storage import Store
from pipeline.verify.parts import Damage, Tally, check_file, check_part

_SMALL = 256
"""Parts and files that one task looks at."""
_BATCH = 64
_DIGESTS = re.compile(r"[0-9a-f]{16}")

Item = tuple[str, Part | Checksum | None]
"""A part's folder, ending in `/`, and what a manifest says of the part; or a file's path and what it must be."""


@dataclass(frozen=True)
class Manifest:
    """What others may depend on, and what it depends on.

    Attributes:
        name: of the manifest.
        digest: of the artifact.
        reads: manifests of what it was made from; None where an older version did not say.
        mentions: digests that its settings hold, those of reference sets among them.
        listed: the parts that it lists.
    """

    name: str
    digest: str
    reads: tuple[str, ...] | None
    mentions: frozenset[str]
    listed: int


@dataclass(frozen=True)
class Folder:
    """An artifact's folder and what was found in it."""

    name: str
    manifests: tuple[Manifest, ...]
    tally: Tally


def check_folders(store: Store, folders: Sequence[str], *, workers: int) -> Iterator[Folder]:
    """Looks at folders, in the order in which that is done."""
    large = []
    for name, folder in spread(partial(_check_small, store), folders, workers=workers):
        if folder is None:
            large.append(name)
        else:
            yield folder
    for name in large:
        yield _check_large(store, name, workers)


def look_again(store: Store, path: str, workers: int) -> list[Damage]:
    """What is damaged of the artifact that a file belongs to; of that file alone where it belongs to none."""
    damage: list[Damage] = []
    if match := FOLDER.fullmatch(path):
        for folder in check_folders(store, [match[1]], workers=workers):
            damage += folder.tally.damage
    if not any(found.path.rpartition("/")[0] == path.rpartition("/")[0] for found in damage):
        damage += check_file(store, path, None).damage
    return damage


def read_folder(store: Store, folder: str) -> tuple[tuple[Manifest, ...], list[Item], list[Damage]]:
    """What is to be looked at in a folder, and which of its manifests are damaged."""
    files = store.find(folder)
    manifests: list[Manifest] = []
    elsewhere = _Elsewhere(store)
    items: dict[str, Part | Checksum | None] = {}
    damage = []
    for name in files:
        if MANIFEST.fullmatch(name[len(folder) + 1 :]):
            try:
                artifact = read_manifest(store, folder, name)
                manifests.append(_manifest(store, name, artifact))
            except DamagedError as error:
                damage.append(Damage(name, "what was written", what_is_wrong(error)))
                continue
            if artifact.manifest != name:
                damage.append(Damage(name, "named by the parts that it lists", artifact.manifest))
            for path in {*artifact.files, *named_files(artifact.info)}:
                # What lies in the folder of another artifact is looked at there; trained filters lie where none is.
                if path.startswith(f"{folder}/") or ".training/" in path:
                    items[path] = artifact.files.get(path)
            for part in artifact.parts:
                home = part.path.rpartition("/")[0]
                if home.startswith(f"{folder}/") or not elsewhere.holds(f"{home}/part.json"):
                    items.setdefault(f"{home}/", part)
    for name in files:
        home, _, base = name[len(folder) + 1 :].partition("/")
        if base == "part.json":
            items.setdefault(f"{folder}/{home}/", None)
        elif not base and not MANIFEST.fullmatch(home) and home.endswith((".npz", ".parquet", ".json", ".safetensors")):
            items.setdefault(name, None)
    return tuple(manifests), list(items.items()), damage


class _Elsewhere:
    """What is there of parts in the folders of other artifacts, where verdicts stand: they are looked at there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[str, set[str]] = {}

    def holds(self, name: str) -> bool:
        """Whether the file of a part is there."""
        folder = "/".join(name.split("/")[:-2])
        if folder not in self._files:
            self._files[folder] = set(self._store.find(folder))
        return name in self._files[folder]


def check_items(store: Store, items: Sequence[Item]) -> Tally:
    """Looks at parts and files; the files beside the parts count as no parts."""
    tally = Tally()
    for path, known in items:
        if path.endswith("/"):
            assert known is None or isinstance(known, Part)
            tally += check_part(store, path[:-1], known)
        else:
            assert known is None or isinstance(known, Checksum)
            found = check_file(store, path, known)
            tally += Tally(0, 0, found.bytes, found.damage)
    return tally


def _manifest(store: Store, name: str, artifact: Artifact) -> Manifest:
    record: dict[str, Any] = read_sealed(store, name)
    mentions = frozenset(_DIGESTS.findall(str(record["settings"])))
    reads = tuple(record["reads"]) if "reads" in record else None
    return Manifest(name, artifact.digest, reads, mentions, len(artifact.parts))


def _check_small(store: Store, folder: str) -> tuple[str, Folder | None]:
    assert HASH.fullmatch(folder.rpartition("/")[2]), folder
    manifests, items, damage = read_folder(store, folder)
    if len(items) > _SMALL:
        return folder, None
    return folder, Folder(folder, manifests, Tally(damage=tuple(damage)) + check_items(store, items))


def _check_large(store: Store, folder: str, workers: int) -> Folder:
    manifests, damage, tallies = streamed(partial(_hand_out, store, folder), partial(check_items, store), workers)
    return Folder(folder, manifests, reduce(Tally.__add__, tallies, Tally(damage=tuple(damage))))


def _hand_out(store: Store, folder: str) -> Iterator[Any]:
    manifests, items, damage = read_folder(store, folder)
    yield manifests, damage
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def streamed(hand_out: Any, work: Any, workers: int) -> Any:
    """Runs one task that hands out batches, and others that work on them.

    Args:
        hand_out: yields a tuple of facts, then the batches.
        work: on a batch.
        workers: CPU workers.

    Returns:
        the facts, and an iterator over the results, in the order in which they come.
    """
    # It waits for the others most of the time, and must not keep the only CPU from them.
    options = {"num_cpus": 0, "num_returns": "streaming", "max_retries": 3}
    batches = ray.remote(_call).options(**options, _generator_backpressure_num_objects=4 * workers).remote(hand_out)
    facts = ray.get(next(batches))
    return *facts, _results(batches, ray.put(work), workers)


def _call(hand_out: Any) -> Iterator[Any]:
    yield from hand_out()


def _work(work: Any, batch: Any) -> Any:
    return work(batch)


def _results(batches: Any, work: Any, workers: int) -> Iterator[Any]:
    task = ray.remote(_work).options(num_cpus=1, max_retries=3)
    in_flight: list[Any] = []
    for batch in batches:
        in_flight.append(task.remote(work, batch))
        if len(in_flight) >= 2 * workers:
            done, in_flight = ray.wait(in_flight, num_returns=1)
            yield ray.get(done[0])
    for done in in_flight:
        yield ray.get(done)
