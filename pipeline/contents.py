"""What lies in a workspace, found a folder at a time: nothing here lists all of it at once.

<step>/<hash>/                      artifacts, `<step>.training/<hash>/` of trained filters among them
ledger/, ledger.json, run.json      the latest run of a curation
status.json                         what the job that has it is doing, or the last one came to
snapshots/                          of a nightly curation: `pipeline.snapshots`
model/, training/<identity>/        of a training
outcomes/, texts/                   of an evaluation
pieces/, damaged/                   what a pass has in hand, and what was moved out of the way
evaluation/, training/*/*/, network/, filtered/*/      workspaces inside one: of a comparison, of a network
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from pipeline.storage import Store

DAMAGED = "damaged"
"""The folder of a workspace that holds what was moved away."""

FOLDER = re.compile(r"([^/]+/[0-9a-f]{16})/(.+)")
"""A path inside an artifact's folder: the folder, and the rest."""
MANIFEST = re.compile(r"manifest-[0-9a-f]{16}\.json")
HASH = re.compile(r"[0-9a-f]{16}")

_NO_STEPS = {"pieces", DAMAGED}
_NESTED = ("network", "evaluation", "filtered/*", "training/*/*")
_MARKS = {
    *("run.json", "summary.json", "status.json", "ledger.json", "comparison.json", "eval_results.jsonl"),
    *("metrics.jsonl", "model", "samples", ".lock", ".lease"),
}
"""Names of which any workspace has one."""


def nested(store: Store) -> list[Store]:
    """The workspaces inside one, not those inside these."""
    return [replace(store, url=f"{store.url.rstrip('/')}/{folder}") for folder in _nested_folders(store)]


def workspaces(store: Store) -> Iterator[Store]:
    """A workspace and all inside it."""
    yield store
    for inner in nested(store):
        yield from workspaces(inner)


def artifact_folders(store: Store) -> list[str]:
    """The folders that hold artifacts, or parts of such that are not finished, or files of none."""
    inner = set(_nested_folders(store))
    return [
        folder
        for step in store.names("")
        if step not in _NO_STEPS and step not in inner and "." not in step[:1]
        for name in _children(store, step)
        if HASH.fullmatch(name) and (folder := f"{step}/{name}") not in inner
    ]


def trainings(store: Store) -> list[str]:
    """The folders of trainings, finished or not."""
    folders = [f"training/{name}" for name in store.names("training")]
    return [folder for folder in folders if {"checkpoints", "diverged"} & set(store.names(folder))]


def _children(store: Store, step: str) -> list[str]:
    names = store.names(step)
    taken = {folder.rpartition("/")[2] for folder in trainings(store)} if step == "training" else set()
    return [name for name in names if name not in taken]


def _nested_folders(store: Store) -> list[str]:
    found = [""]
    folders = []
    for pattern in _NESTED:
        found = [""]
        for word in pattern.split("/"):
            below = ((parent, store.names(parent.rstrip("/"))) for parent in found)
            found = [f"{parent}{name}/" for parent, names in below for name in names if word in ("*", name)]
        folders += [folder.rstrip("/") for folder in found if _MARKS & set(store.names(folder.rstrip("/")))]
    return folders
