"""What a curation leaves behind, and how it differs from what another did."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.artifact import read_manifest
from pipeline.contents import FOLDER, MANIFEST
from pipeline.integrity import read_sealed
from pipeline.ledger import read_ledger
from pipeline.snapshots import FOLDER as FOLDER_OF_SNAPSHOTS
from pipeline.storage import Store

_ATTEMPT = re.compile("attempt-[0-9a-f]{32}")
"""The folder of what a step wrote in one attempt, whichever it was."""
_EXPORT = re.compile("exports/[0-9a-f]{16}")
"""What the workspace knows of an export; its address depends on where it goes."""
WORK = "work"
"""The workspace, in the folder of a schedule; all else in it was exported."""


@dataclass(frozen=True)
class Outcome:
    """What a curation left behind for its user.

    Attributes:
        samples: how often each sample is in the ledger: (uid, shard, key).
        ledger: SHA-256 of its rows.
        data: what the manifests of all artifacts say of their data, by manifest; snapshots and their diffs.
        files: SHA-256 of every exported file, by path.
    """

    samples: Counter[tuple[str, str, str]]
    ledger: str
    data: Mapping[str, str]
    files: Mapping[str, str]


@dataclass
class Tally:
    """What schedules came to.

    Attributes:
        faults: how many of each kind struck.
        schedules, runs: of a command that ended well, and all that were started for it.
        lost, twice: samples.
        orphans: files that are listed somewhere and would not be.
        different: what was not as in the undisturbed run.
    """

    faults: Counter[str] = field(default_factory=Counter)
    schedules: int = 0
    runs: int = 0
    lost: int = 0
    twice: int = 0
    orphans: int = 0
    different: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled, left visible or different."""
        return not (self.lost or self.twice or self.orphans or self.different)

    def add(self, other: "Tally") -> None:
        """Adds what other schedules came to."""
        self.faults += other.faults
        self.schedules += other.schedules
        self.runs += other.runs
        self.lost += other.lost
        self.twice += other.twice
        self.orphans += other.orphans
        self.different += other.different

    def show(self) -> str:
        """A table."""
        lines = [f"{kind:<28}{count:>7,}" for kind, count in sorted(self.faults.items())]
        sums = {"faults": self.faults.total(), "schedules": self.schedules, "runs": self.runs}
        sums |= {"samples lost": self.lost, "samples twice": self.twice, "orphans visible": self.orphans}
        lines += [f"{name:<28}{count:>7,}" for name, count in sums.items()]
        return "\n".join([*lines, f"{'outcomes that differ':<28}{len(self.different):>7,}", *self.different])


def read_outcome(home: Store) -> Outcome:
    """Reads the folder of a schedule, with no help of what the curation says of itself."""
    store = replace(home, url=f"{home.url}/{WORK}")
    samples: Counter[tuple[str, str, str]] = Counter()
    sha256 = hashlib.sha256()
    for table in read_ledger(store):
        rows = table.to_pylist()
        samples.update((row["uid"], row["shard"], row["key"]) for row in rows)
        sha256.update(json.dumps(rows, sort_keys=True).encode())
    data = {}
    for path in store.find(""):
        match = FOLDER.fullmatch(path)
        if match and MANIFEST.fullmatch(match[2]):
            artifact = read_manifest(store, match[1], path)
            parts = [(part.shard, part.path, part.sha256, dict(part.counts), part.mask) for part in artifact.parts]
            files = {name: str(checksum) for name, checksum in artifact.files.items()}
            data[path] = _ATTEMPT.sub("attempt", json.dumps([parts, files], sort_keys=True))
        elif (
            path.startswith(f"{FOLDER_OF_SNAPSHOTS}/") and not path.endswith(".night.json") and "/.attempt-" not in path
        ):
            data[path] = _content(store, path)
    exported = [path for path in home.find("") if not path.startswith(f"{WORK}/")]
    files = {path: hashlib.sha256(home.read(path)).hexdigest() for path in exported}
    return Outcome(samples, sha256.hexdigest(), data, files)


def read_names(home: Store) -> set[str]:
    """What lies in the workspace of a schedule, but for leases and what is written by the clock."""
    store = replace(home, url=f"{home.url}/{WORK}")
    names = (name for name in store.find("") if not name.startswith((".lease", ".lock", "status.json")))
    return {_EXPORT.sub("exports/address", _ATTEMPT.sub("attempt", name)) for name in names}


def _content(store: Store, path: str) -> str:
    """Of a file of a nightly curation: a snapshot without its config, which says where all this is."""
    if not path.endswith(".json"):
        return hashlib.sha256(store.read(path)).hexdigest()
    return json.dumps({**read_sealed(store, path), "config": None}, sort_keys=True)


def compare(expected: Outcome, found: Outcome, name: str, tally: Tally) -> None:
    """Adds to a tally what is not as it should be."""
    tally.lost += (expected.samples - found.samples).total()
    tally.twice += (found.samples - expected.samples).total()
    tally.orphans += len(found.data.keys() - expected.data.keys()) + len(found.files.keys() - expected.files.keys())
    if found.ledger != expected.ledger:
        tally.different.append(f"{name}: the ledger")
    for what, theirs, ours in (("artifact", expected.data, found.data), ("export", expected.files, found.files)):
        keys = sorted(theirs.keys() | ours.keys())
        tally.different += [f"{name}: {what} {key}" for key in keys if theirs.get(key) != ours.get(key)]
