"""A step whose code changed has a new version, or a reason why its output is the same.

What a workspace holds is reused while settings, inputs and version are equal, so code that changes a result without
counting up the version would mix old results with new ones. `step_hashes.json` holds, for each step, its version and a
hash of its code. When a hash is no longer the one recorded, count up the version and run

    WINNOW_UPDATE_HASHES=1 pytest tests/pipeline/test_step_versions.py

or, where every result stays the same (a renaming, a speed-up), leave the version and give the reason:

    WINNOW_UPDATE_HASHES=1 WINNOW_WHY_SAME_VERSION="faster, same rows" pytest tests/pipeline/test_step_versions.py
"""

import ast
import hashlib
import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pipeline.evaluation.evaluate import OUTCOMES_VERSION
from pipeline.evaluation.texts import TEXTS_VERSION
from pipeline.labels.fields import FIELDS_VERSION
from pipeline.steps.clusters import CLUSTERS_VERSION
from pipeline.steps.diversity import DIVERSITY_VERSION
from pipeline.steps.registry import AnyStep
from pipeline.steps.unique_uid import UniqueUid
from pipeline.stream.work import EMBEDDING_VERSION, SAMPLES_VERSION

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("step_hashes.json")


def classes_of(union: object) -> list[type]:
    """The settings classes of a union of steps, those of unions within it too (one for each `method`)."""
    members = get_args(get_args(union)[0])
    return [found for member in members for found in ([member] if isinstance(member, type) else classes_of(member))]


CLASSES = [UniqueUid, *classes_of(AnyStep)]
PRUNE = [f"pipeline.steps.prune.{path.stem}" for path in sorted((ROOT / "pipeline/steps/prune").glob("[!_]*.py"))]
READERS = [f"pipeline.readers.{path.stem}" for path in sorted((ROOT / "pipeline/readers").glob("[!_]*.py"))]
MODELS = [f"pipeline.models.{path.stem}" for path in sorted((ROOT / "pipeline/models").glob("[!_]*.py"))]
KMEANS = [f"pipeline.{name}" for name in ("kmeans", "kmeans_worker", "kmeans_keys", "first_centroids", "clustering")]
OUTCOMES = [*(f"pipeline.evaluation.{name}" for name in ("jobs", "prepare", "sets")), "pipeline.labels.numbers"]

BESIDE = {
    "exact_dedup": ["pipeline.uniqueness"],
    "filter": ["pipeline.steps.groups", "pipeline.steps.thresholds", "pipeline.steps.values"],
    "prune": PRUNE,
    "unique_uid": ["pipeline.uniqueness"],
}
"""Modules of pipeline/ that decide about a step's result besides its own."""

STEPS: dict[str, tuple[int, list[str]]] = {
    step.model_fields["step"].annotation.__args__[0]: (step.version, [step.__module__]) for step in CLASSES
}
STEPS |= {
    "clusters": (CLUSTERS_VERSION, ["pipeline.steps.clusters", *KMEANS]),
    "diversity": (DIVERSITY_VERSION, ["pipeline.steps.diversity"]),
    "embedding": (EMBEDDING_VERSION, ["pipeline.stream.chunks", "pipeline.stream.encode", *MODELS]),
    "evaluation.fields": (FIELDS_VERSION, ["pipeline.labels.fields", *READERS]),
    "evaluation.outcomes": (OUTCOMES_VERSION, OUTCOMES),
    "evaluation.texts": (TEXTS_VERSION, ["pipeline.evaluation.texts", *MODELS]),
    "samples": (SAMPLES_VERSION, ["pipeline.stream.chunks", *READERS]),
}
NO_RESULT = {"operators.errors"}
"""Operators that decide about no result."""


def code_hash(modules: list[str]) -> str:
    """SHA-256 over the code of modules and of all operators that they import, directly or through operators."""
    waiting, seen = list(modules), {}
    while waiting:
        name = waiting.pop()
        if name not in seen:
            tree = ast.parse(path_of(name).read_text(encoding="utf-8"))
            seen[name] = repr(shape(tree))
            waiting += [other for other in imports(tree) if other.startswith("operators.") and other not in NO_RESULT]
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()


def path_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a tree imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if path_of(name).exists()]
            yield from modules if len(modules) == len(inner) else [node.module, *modules]


def shape(node: object) -> object:
    """A syntax tree without positions, docstrings, what is said to people, and what Python versions differ in."""
    if isinstance(node, list):
        return [shape(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Raise):
        node = Unspoken().visit(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        fields["body"] = [item for item in node.body if not is_text(item)]
    return type(node).__name__, [(name, shape(value)) for name, value in sorted(fields.items())]


class Unspoken(ast.NodeTransformer):
    """Takes the words out of an error."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node


def is_text(item: ast.stmt) -> bool:
    """Whether a statement is a docstring, of a module, a class, a function or an attribute."""
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)


def now() -> dict[str, dict[str, object]]:
    return {
        name: {"version": version, "hash": code_hash(modules + BESIDE.get(name, []))}
        for name, (version, modules) in sorted(STEPS.items())
    }


def update(recorded: dict, current: dict, why: str) -> dict:
    """The new record. A step whose code changed and whose version did not needs a reason."""
    result = {}
    for name, entry in current.items():
        old = recorded.get(name, {})
        if old.get("hash") == entry["hash"] and old.get("version") == entry["version"]:
            result[name] = old
            continue
        same_version = old.get("version") == entry["version"]
        assert why or not same_version, f"{name}: count up its version, or say why not in WINNOW_WHY_SAME_VERSION"
        result[name] = {**entry, "why_same_version": why} if same_version else entry
    return result


def test_no_step_changed_behind_its_version():
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    current = now()
    if os.environ.get("WINNOW_UPDATE_HASHES"):
        recorded = update(recorded, current, os.environ.get("WINNOW_WHY_SAME_VERSION", ""))
        RECORD.write_text(json.dumps(recorded, indent=2) + "\n")
    found = {name: {key: entry[key] for key in ("version", "hash")} for name, entry in recorded.items()}
    changed = [name for name in current if current[name] != found.get(name)]
    assert not changed, f"the code of {', '.join(changed)} changed:\n{__doc__}"
    assert set(found) == set(current)


def module(text: str) -> object:
    return shape(ast.parse(textwrap.dedent(text)))


CODE = """
def f(x: int) -> int:
    if x < 0:
        raise ValueError(f"x must not be negative, got {x}")
    return x + 1
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f", '"""Text."""\n\n\ndef f'),
        ("    if", '    """Text."""\n    # why\n    if'),
        ("must not", "may not"),
    ],
)
def test_words_and_places_do_not_count(old, new):
    assert module(CODE.replace(old, new)) == module(CODE)


@pytest.mark.parametrize(("old", "new"), [("< 0", "<= 0"), ("x + 1", "x + 2"), ("Value", "Type"), ("raise ", "")])
def test_code_counts(old, new):
    assert module(CODE.replace(old, new)) != module(CODE)


def test_operators_count_wherever_they_are_imported():
    names = set(imports(ast.parse(path_of("pipeline.steps.filter").read_text())))
    assert {"operators.selection", "operators.thresholds", "pipeline.run"} <= names
    inside = ast.parse("def f():\n    from operators import rules\n    import operators.quotas")
    assert sorted(imports(inside)) == ["operators.quotas", "operators.rules"]


def test_a_changed_step_needs_a_new_version_or_a_reason():
    old = {"a": {"version": 1, "hash": "x"}, "gone": {"version": 1, "hash": "z"}}
    same, code, version = ({"a": {"version": v, "hash": h}} for v, h in ((1, "x"), (1, "y"), (2, "y")))
    assert update(old, same, "") == same
    assert update(old, version, "") == version
    assert update(old, code, "faster") == {"a": {"version": 1, "hash": "y", "why_same_version": "faster"}}
    with pytest.raises(AssertionError, match="a: count up its version"):
        update(old, code, "")
