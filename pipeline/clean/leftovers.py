"""What attempts that died, and work that is over, leave behind.

    pieces of passes        pieces/**
    scratch files           .attempt-*, .probe-*, wherever they lie
    uncommitted parts       <step>/<hash>/<part id>/*.parquet that no part.json names
    notes between tasks     <step>/<hash>/{found,repeats,against,rows}/**, attempt-*/** but for what a manifest names
    iterations              <step>/<hash>/iterations/** of a fit that is finished
    old ledgers             ledger/*.parquet that ledger.json does not name
    diffs of no snapshot    snapshots/diff-<hash>/*.parquet
    outcomes                outcomes/<hash>.parquet without its record
    checkpoints             training/<identity>/checkpoints/** where the model of that very training is finished
    moved away              damaged/**: what `winnow verify --repair` found, or a run; but for what snapshots still name

The files of a step that is under way (a fit, quotas, a trained filter, the committed parts) are no leftovers: the next
run goes on from them. Nor are leases: whoever looks here holds one, and lets those before it go with its own.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from pipeline.artifact import named_files, read_manifest, read_part
from pipeline.contents import DAMAGED, MANIFEST, artifact_folders, trainings
from pipeline.ledger import find_ledger
from pipeline.manifests import moved_away
from pipeline.snapshots import FOLDER as SNAPSHOTS
from pipeline.snapshots import read_snapshots
from pipeline.storage import Store
from pipeline.training.finished import MODEL, read_origin

PIECES = "pieces"

_SCRATCH = re.compile(r"(?:.*/)?\.(?:attempt|probe)-[0-9a-f]{32}")
_DATA = re.compile(r"([0-9a-f]{16})/[0-9a-f]{16}(?:-[0-9a-f]{8})?\.parquet")
_NOTES = re.compile(r"(?:found|repeats|against|rows|attempt-[0-9a-f]{32})/.+")
_ITERATIONS = re.compile(r"iterations/.+")
_FIT = "fit.npz"
_FOLDERS = ("exports", "ledger", "model", "outcomes", "texts")
"""Of what is no step's."""
_AT_ONCE = 16


@dataclass(frozen=True)
class Leftover:
    """Files of one kind in one folder.

    Attributes:
        what: kind of thing.
        where: the folder.
        files: path -> bytes.
    """

    what: str
    where: str
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def find_leftovers(store: Store) -> Iterator[Leftover]:
    """Everything of these kinds in a workspace, not in those inside it; entries without files among it."""
    yield Leftover("pieces of passes that are over", PIECES, store.find(PIECES))
    yield _damaged(store)
    yield from _outside_steps(store)
    for folder in artifact_folders(store):
        yield from _in_artifact(store, folder)
    for training in trainings(store):
        files = {name: size for name, size in store.find(training).items() if _SCRATCH.fullmatch(name)}
        yield Leftover("scratch of dead attempts", training, files)
        if read_origin(store, MODEL).get("identity") == training.rpartition("/")[2]:
            files = store.find(f"{training}/checkpoints")
            yield Leftover("checkpoints of a finished training", training, files)


def older_than(store: Store, leftover: Leftover, latest: float) -> Leftover:
    """Those of the files that were last changed before a time.

    Args:
        store: the workspace.
        leftover: what was found.
        latest: seconds since 1970.
    """
    keep = {path: size for path, size in leftover.files.items() if store.modified(path) < latest}
    return replace(leftover, files=keep)


def _damaged(store: Store) -> Leftover:
    """What was moved away, without the manifests that are read there (`pipeline.manifests`)."""
    read = set(moved_away(store, read_snapshots(store)).values())
    files = {path: size for path, size in store.find(DAMAGED).items() if path not in read}
    return Leftover("moved away as damaged", DAMAGED, files)


def _outside_steps(store: Store) -> Iterator[Leftover]:
    top = store.names("")
    for folder in ("", *(name for name in (*_FOLDERS, SNAPSHOTS) if name in top)):
        names = [f"{folder}/{name}".lstrip("/") for name in store.names(folder)]
        yield Leftover("scratch of dead attempts", folder or ".", _sizes(store, filter(_SCRATCH.fullmatch, names)))
    ledger = find_ledger(store)
    if ledger is not None:
        named = {file.path for file in ledger.files}
        files = {name: size for name, size in store.find("ledger").items() if name not in named}
        yield Leftover("ledgers of earlier runs", "ledger", {n: s for n, s in files.items() if n.endswith(".parquet")})
    if SNAPSHOTS in top:
        listed = {file["path"] for snapshot in read_snapshots(store) for file in snapshot["diff"]["files"]}
        files = {name: size for name, size in store.find(SNAPSHOTS).items() if name.startswith(f"{SNAPSHOTS}/diff-")}
        yield Leftover("diffs of no snapshot", SNAPSHOTS, {n: s for n, s in files.items() if n not in listed})
    outcomes = store.find("outcomes") if "outcomes" in top else {}
    alone = [name for name in outcomes if name.endswith(".parquet")]
    alone = [name for name in alone if f"{name.removesuffix('.parquet')}.json" not in outcomes]
    yield Leftover("outcomes without a record", "outcomes", {name: outcomes[name] for name in alone})


def _sizes(store: Store, names: Iterator[str]) -> dict[str, int]:
    return {name: store.size(name) for name in names}


def _in_artifact(store: Store, folder: str) -> Iterator[Leftover]:
    files = store.find(folder)
    inside = {name[len(folder) + 1 :]: name for name in files}
    manifests = [name for short, name in inside.items() if MANIFEST.fullmatch(short)]
    named: set[str] = set()
    for name in manifests:
        artifact = read_manifest(store, folder, name)
        named |= {*named_files(artifact.info), *(part.path for part in artifact.parts)}
    kinds: dict[str, list[str]] = {}
    homes: dict[str, list[str]] = {}
    for short, name in inside.items():
        if _SCRATCH.fullmatch(short):
            kinds.setdefault("scratch of dead attempts", []).append(name)
        elif name in named:
            continue
        elif match := _DATA.fullmatch(short):
            homes.setdefault(match[1], []).append(name)
        elif _NOTES.fullmatch(short):
            kinds.setdefault("notes between tasks", []).append(name)
        elif _ITERATIONS.fullmatch(short) and _FIT in inside:
            kinds.setdefault("iterations of a finished fit", []).append(name)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        orphans = pool.map(partial(_orphans, store, folder, set(inside)), homes.items())
        kinds["parts that were never committed"] = [name for found in orphans for name in found]
    for what, names in kinds.items():
        yield Leftover(what, folder, {name: files[name] for name in names})


def _orphans(store: Store, folder: str, inside: set[str], home: tuple[str, list[str]]) -> list[str]:
    """Those of a part's data files that its record does not name. Raises DamagedError."""
    part_id, names = home
    if f"{part_id}/part.json" not in inside:
        return names
    path = read_part(store, f"{folder}/{part_id}").path
    return [name for name in names if name != path]
