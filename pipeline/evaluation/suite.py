"""DataComp's folder of evaluation sets, as tasks like any other.

{path}/wds_{task}_test/classnames.txt                              a class on each line, in the order of the labels
{path}/wds_{task}_test/zeroshot_classification_templates.txt       a template on each line, with {c}
{path}/wds_{task}_test/test/nshards.txt                            how many tars there are
{path}/wds_{task}_test/test/{i}.tar                                members .jpg, .png or .webp, and .cls, and .npy
where the metric asks for groups
"""

import posixpath
import re
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from operators.errors import InputError
from operators.evaluation.datacomp import BY_FOLDER, WITHOUT_MAIN_METRIC
from pipeline.evaluation.task_settings import Classification, DatacompSuite
from pipeline.labels.lists import read_classes, read_templates, read_text
from pipeline.pool import Pool, suggest
from pipeline.remote import open_location, retry

_FOLDER = re.compile(r"wds_(.+)_test")


def expand_suite(suite: DatacompSuite) -> list[Classification]:
    """The tasks in a folder, sorted by name.

    FairFace and UTKFace are passed over, as they have no main metric.

    Raises:
        InputError: there is none, one lacks a file, or a task of `only` is not there.
    """
    fs, root = open_location(suite.path, suite.storage)
    if not retry(lambda: fs.isdir(root)):
        raise InputError(f"a folder of DataComp's evaluation sets must exist, got {suite.path}")
    paths = {posixpath.basename(path.rstrip("/")): path for path in sorted(retry(lambda: fs.ls(root, detail=False)))}
    folders = {
        task_name(name): path
        for name, path in paths.items()
        if _FOLDER.fullmatch(name) and name not in WITHOUT_MAIN_METRIC
    }
    if not folders:
        raise InputError(f"{suite.path} must hold folders named wds_TASK_test, got none")
    for wanted in suite.only:
        if wanted not in folders:
            raise InputError(f"only must name tasks of {suite.path}, got {wanted!r}{suggest(wanted, folders)}")
    return [_task(suite, fs, path) for name, path in folders.items() if not suite.only or name in suite.only]


def task_name(folder: str) -> str:
    """The key of the task that a folder is named after."""
    match = _FOLDER.fullmatch(folder)
    assert match, folder
    return BY_FOLDER[folder].key if folder in BY_FOLDER else match[1]


def _task(suite: DatacompSuite, fs: Any, path: str) -> Classification:
    folder = path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))
    name = posixpath.basename(path.rstrip("/"))
    if name in BY_FOLDER and (kind := BY_FOLDER[name].kind) != "classification":
        raise InputError(f"{folder} must be a set of classification, got one of {kind}: list the others under only")
    _check_shards(suite, fs, path, folder)
    source = {"format": "webdataset", "path": f"{folder}/test/*.tar", "storage": suite.storage}
    return Classification(
        task="classification",
        name=task_name(name),
        data=Pool.model_validate(source),
        label_field="cls",
        group_field="npy" if name in BY_FOLDER and BY_FOLDER[name].grouped else None,
        classes=read_classes(f"{folder}/classnames.txt", suite.storage),
        templates=read_templates(f"{folder}/zeroshot_classification_templates.txt", suite.storage),
    )


def _check_shards(suite: DatacompSuite, fs: Any, path: str, folder: str) -> None:
    """The tars must be those that `nshards.txt` speaks of."""
    text = read_text(f"{folder}/test/nshards.txt", suite.storage).strip()
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{folder}/test/nshards.txt must hold a whole number of at least 1, got {text!r}")
    there = {posixpath.basename(tar) for tar in retry(lambda: fs.glob(f"{path}/test/*.tar"))}
    expected = {f"{number}.tar" for number in range(int(text))}
    if there != expected:
        differing = ", ".join(sorted(expected - there)[:3] or sorted(there - expected)[:3])
        which = "without" if expected - there else "with also"
        raise InputError(
            f"{folder}/test must hold the {text} tars of nshards.txt, got {len(there)} {which} {differing}"
        )
