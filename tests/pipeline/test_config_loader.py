import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from operators.errors import ConfigError
from pipeline.config.document import override, read_document
from pipeline.config.loader import canonical, load_config
from pipeline.config.problems import KeyProblem


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rules(Settings):
    step: Literal["rules"]
    name: str = "rules"
    min_side: int = Field(200, ge=1)
    max_aspect: float = Field(3.0, gt=1)
    words: tuple[str, ...] = Field((), max_length=2)


class Prune(Settings):
    step: Literal["prune"]
    name: str = "prune"
    keep_fraction: float = Field(gt=0, le=1)
    method: Literal["dbp", "random"] = "dbp"
    clusters: int = 8

    @field_validator("clusters")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value.bit_count() != 1:
            raise ValueError("must be a power of two")
        return value


class Score(Settings):
    step: Literal["score"]
    name: str = "score"
    score: float = 0.0  # the same word as its tag


class Kind(StrEnum):
    UIDS = "uids"
    TAR = "tar"


class Export(Settings):
    kind: Kind
    path: Path
    verbose: bool = False
    limit: int | str | None = None


class Config(Settings):
    workspace: str
    seed: int = 0
    steps: tuple[Annotated[Rules | Prune | Score, Field(discriminator="step")], ...] = ()
    export: list[Export] = []
    models: dict[str, Export] = {}

    @model_validator(mode="after")
    def _unique_names(self) -> "Config":
        names = [step.name for step in self.steps]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise KeyProblem(("steps", index, "name"), f"must be unique, got {name!r} again")
        return self


GOOD = """\
workspace: out
steps:
  - {step: rules, min_side: 100}
  - step: prune
    name: dense
    keep_fraction: 0.25
  - step: prune
    keep_fraction: 0.5
export:
  - {kind: uids, path: /tmp/x.npy}
"""

RULES_KEYS = "max_aspect, min_side, name, step, words"
CONFIG_KEYS = "export, models, seed, steps, workspace"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text: str, *overrides: str) -> Config:
        Path("curate.yaml").write_text(text)
        return load_config("curate.yaml", Config, overrides)

    return run


@pytest.fixture
def problems(load):
    def run(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).split("\n")

    return run


def test_a_good_config(load):
    config = load(GOOD)
    assert config.workspace == "out"
    assert [step.name for step in config.steps] == ["rules", "dense", "prune"]
    assert config.steps[1].keep_fraction == 0.25
    assert config.export[0] == Export(kind=Kind.UIDS, path=Path("/tmp/x.npy"))


def test_overrides_address_items_by_name_step_and_index(load):
    config = load(
        GOOD,
        "steps.dense.keep_fraction=0.3",
        "steps.prune.keep_fraction=1e-1",
        "steps.0.words=[a, b]",
        "export.0.path=/tmp/y.npy",
        "models.clip.kind=tar",
        "models.clip.path=clip",
        "seed=7",
    )
    assert [step.keep_fraction for step in config.steps[1:]] == [0.3, 0.1]
    assert config.steps[0].words == ("a", "b")
    assert config.export[0].path == Path("/tmp/y.npy")
    assert config.models == {"clip": Export(kind=Kind.TAR, path=Path("clip"))}
    assert config.seed == 7


def test_later_overrides_win_and_values_may_hold_equal_signs(load):
    assert load(GOOD, "workspace=a", "workspace=s3://b/c=d").workspace == "s3://b/c=d"


def test_environment_variables_are_not_expanded(load, monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    assert load("workspace: $HOME/${HOME}/~").workspace == "$HOME/${HOME}/~"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- {step: prune, keep_fraction: 1.5}", ["prune.keep_fraction must be in (0, 1], got 1.5 (curate.yaml:3)"]),
        (
            "- step: prune\n    keep_fraction: x",
            ["prune.keep_fraction must be a number in (0, 1], got 'x' (curate.yaml:4)"],
        ),
        ("- step: prune\n    name: p", ["p.keep_fraction must be given (curate.yaml:3)"]),
        ("- {step: rules, min_side: 0}", ["rules.min_side must be at least 1, got 0 (curate.yaml:3)"]),
        ("- {step: rules, max_aspect: 1}", ["rules.max_aspect must be greater than 1, got 1 (curate.yaml:3)"]),
        (
            "- {step: rules, min_side: 1.5}",
            ["rules.min_side must be a whole number at least 1, got 1.5 (curate.yaml:3)"],
        ),
        ("- {step: rules, words: abc}", ["rules.words must be a list, got 'abc' (curate.yaml:3)"]),
        ("- {step: rules, words: [a, b, c]}", ["rules.words must have at most 2 items, got a list (curate.yaml:3)"]),
        ("- {step: rules, words: [a, 1]}", ["rules.words.1 must be text, got 1 (curate.yaml:3)"]),
        (
            "- {step: rules, min_sid: 3}",
            [f"rules.min_sid is not a known key, did you mean min_side? Known here: {RULES_KEYS} (curate.yaml:3)"],
        ),
        (
            "- {step: score, score: x, zzz: 1}",
            [
                "score.score must be a number, got 'x' (curate.yaml:3)",
                "score.zzz is not a known key. Known here: name, score, step (curate.yaml:3)",
            ],
        ),
        (
            "- {step: prun}",
            ["prun.step must be one of rules, prune, score, got 'prun', did you mean prune? (curate.yaml:3)"],
        ),
        ("- {min_side: 3}", ["steps.0.step must be given: one of rules, prune, score (curate.yaml:3)"]),
        ("- 7", ["steps.0 must be a mapping, got 7 (curate.yaml:3)"]),
        ("{}", ["steps must be a list, got a mapping (curate.yaml:2)"]),
        (
            "- {step: prune, keep_fraction: 1, method: dpb}",
            ["prune.method must be one of dbp, random, got 'dpb', did you mean dbp? (curate.yaml:3)"],
        ),
        (
            "- {step: prune, keep_fraction: 1, clusters: 7}",
            ["prune.clusters must be a power of two, got 7 (curate.yaml:3)"],
        ),
        ("- {step: rules}\n  - {step: rules}", ["rules.name must be unique, got 'rules' again (curate.yaml:4)"]),
    ],
)
def test_each_problem_names_key_rule_value_and_line(problems, text, expected):
    assert problems(f"workspace: w\nsteps:\n  {text}\n") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- {kind: csv, path: p}", ["export.0.kind must be one of uids, tar, got 'csv' (curate.yaml:3)"]),
        ("- {kind: tar, path: p, verbose: 3}", ["export.0.verbose must be true or false, got 3 (curate.yaml:3)"]),
        ("- {kind: tar, path: 3}", ["export.0.path must be a path, got 3 (curate.yaml:3)"]),
        (
            "- {kind: tar, path: p, limit: [1]}",
            ["export.0.limit must be a whole number or text, got a list (curate.yaml:3)"],
        ),
        ("null", ["export must be a list, got null (curate.yaml:2)"]),
    ],
)
def test_enums_paths_and_plain_unions(problems, text, expected):
    assert problems(f"workspace: w\nexport:\n  {text}\n") == expected


def test_all_problems_come_at_once_in_the_order_of_the_fields(problems):
    lines = problems("seed: x\nsteps:\n  - {step: prune, keep_fraction: 0}\nmodels: {clip: {kind: tar}}\nwat: 1\n")
    assert lines == [
        "workspace must be given (curate.yaml)",
        "seed must be a whole number, got 'x' (curate.yaml:1)",
        "prune.keep_fraction must be in (0, 1], got 0 (curate.yaml:3)",
        "models.clip.path must be given (curate.yaml:4)",
        f"wat is not a known key. Known here: {CONFIG_KEYS} (curate.yaml:5)",
    ]


def test_an_override_is_named_where_it_is_at_fault(problems):
    assert problems(GOOD, "steps.prune.keep_fraction=1.5") == [
        "prune.keep_fraction must be in (0, 1], got 1.5 (--set steps.prune.keep_fraction=1.5)"
    ]
    assert problems(GOOD, "export.0={kind: tar}") == ["export.0.path must be given (--set export.0={kind: tar})"]
    assert problems(GOOD, "modles.clip.kind=tar") == [
        f"modles is not a known key, did you mean models? Known here: {CONFIG_KEYS} (--set modles.clip.kind=tar)"
    ]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed", "--set must be of the form key.key=value, got 'seed'"),
        ("=1", "--set must be of the form key.key=value, got '=1'"),
        ("a..b=1", "--set must be of the form key.key=value, got 'a..b=1'"),
        ("workspace.x=1", "workspace must be a mapping or a list to hold 'x', got 'out' (--set workspace.x=1)"),
        ("steps.blur.x=1", "steps.blur must name an item of steps (there: rules, dense, prune) (--set steps.blur.x=1)"),
        ("steps.3.x=1", "steps.3 must name an item of steps (there: rules, dense, prune) (--set steps.3.x=1)"),
        ("seed={", "--set seed={ must be valid YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_overrides_that_cannot_be_applied(problems, assignment, expected):
    assert problems(GOOD, assignment) == [expected]


def test_two_items_of_one_name_must_be_addressed_by_index(problems):
    text = "workspace: w\nsteps: [{step: rules}, {step: rules}]\n"
    assert problems(text, "steps.rules.min_side=1") == [
        "steps.rules must name one item, got 2; use its index (--set steps.rules.min_side=1)"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "curate.yaml:1:6 must be valid YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "a: 1\nb: 2\na: 3",
            "curate.yaml:3:1 must be valid YAML: the key 'a' must be given once, the first is at curate.yaml:1",
        ),
        ("a: b: c", "curate.yaml:1:5 must be valid YAML: mapping values are not allowed here"),
        ("a: !!python/name:os.system x", "curate.yaml:1:4 must be valid YAML: the tag "),
        ("a: !!int x", "curate.yaml:1:4 must be valid YAML: invalid literal"),
        ("? [a]\n: 1", "curate.yaml:1:3 must be valid YAML: a key must be a plain word"),
        ("a: 1\n---\nb: 1", "curate.yaml:2:1 must be valid YAML: but found another document"),
        ("a: \x01", "curate.yaml must be valid YAML: unacceptable character"),
        ("a: &x [*x]", "curate.yaml must not contain itself"),
        ("", "workspace must be given (curate.yaml)"),
        ("- a", "the config must be a mapping, got a list (curate.yaml)"),
    ],
)
def test_what_is_no_config_names_its_place(problems, text, expected):
    assert problems(text)[0].startswith(expected)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"the config file must exist, got .*nowhere\.yaml$"):
        load_config(str(tmp_path / "nowhere.yaml"), Config)
    with pytest.raises(ConfigError, match=r"must be readable text in UTF-8, got .*Is a directory"):
        load_config(str(tmp_path), Config)
    (tmp_path / "latin.yaml").write_bytes("workspace: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"must be readable text in UTF-8, got .*latin\.yaml"):
        load_config(str(tmp_path / "latin.yaml"), Config)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("no", "no"), ("2024-01-01", "2024-01-01"), ("12:30:00", "12:30:00"), ("007", "007"),
        ("1_000", 1000), ("0x1F", 31), ("0o17", 15), ("-3", -3), (".5", 0.5), ("-.inf", -math.inf), ("true", True),
        ("null", None), ("~", None), ("", None), ("'1'", "1"), ("s3://b/c", "s3://b/c"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(tmp_path, text, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {text}")
    got = read_document(str(path)).value["a"]
    assert got == value
    assert type(got) is type(value)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="ascii"))
KEYS = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_documents_equal_what_was_dumped_and_every_key_has_a_line(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps(value))
    document = read_document(str(path))
    assert document.value == value
    assert set(document.origins) == {(), *_paths(value)}
    assert all(origin == f"{path}:1" for key, origin in document.origins.items() if key)


def _paths(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


@given(KEYS, KEYS, VALUES)
def test_an_override_sets_one_value_and_leaves_its_document_alone(tmp_path_factory, first, second, value):
    path = tmp_path_factory.getbasetemp() / "base.yaml"
    path.write_text("zzzzzzz: {a: 1}")
    document = read_document(str(path))
    changed = override(document, f"{first}.{second}={json.dumps(value)}")
    assert changed.value == {"zzzzzzz": {"a": 1}, first: {second: value}}
    assert document.value == {"zzzzzzz": {"a": 1}}
    assert changed.origin((first, second)).startswith("--set ")
    assert changed.origin(("zzzzzzz", "a")) == f"{path}:1"


KINDS: dict[str, type[Settings]] = {"rules": Rules, "prune": Prune}
Item = Annotated[Settings, BeforeValidator(lambda item: KINDS[item["step"]].model_validate(item))]


class Registry(Settings):
    """Its items are built by a validator, so that its schema says nothing about them."""

    steps: tuple[Item, ...]


def test_models_built_inside_a_validator_are_explained_too(tmp_path):
    path = tmp_path / "curate.yaml"
    path.write_text("steps:\n- step: rules\n  min_side: 0\n- step: prune\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), Registry)
    assert str(caught.value).split("\n") == [
        f"rules.min_side must be at least 1, got 0 ({path}:3)",
        f"prune.keep_fraction must be given ({path}:4)",
    ]


class Pool(Settings):
    """One export may be written in place of the list."""

    exports: tuple[Export, ...]

    @model_validator(mode="before")
    @classmethod
    def _wrap(cls, data: dict[str, object]) -> dict[str, object]:
        return data if "exports" in data else {"exports": [data]}


def test_keys_that_a_validator_moved_are_named_as_the_user_wrote_them(tmp_path):
    path = tmp_path / "pool.yaml"
    path.write_text("kind: tar\nverbose: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), Pool)
    assert str(caught.value).split("\n") == [
        f"path must be given ({path})",
        f"verbose must be true or false, got 3 ({path}:2)",
    ]


class Sets(Settings):
    words: frozenset[str]
    inner: Settings
    path: Path = Path("a/b")
    kind: Kind = Kind.TAR
    numbers: dict[str, float] = {}


def test_canonical_is_sorted_plain_and_complete():
    model = Sets(words=frozenset("qwertyuiop"), inner=Score(step="score"), numbers={"b": 1, "a": 2})
    assert canonical(model) == {
        "inner": {"name": "score", "score": 0.0, "step": "score"},
        "kind": "tar",
        "numbers": {"a": 2.0, "b": 1.0},
        "path": "a/b",
        "words": sorted("qwertyuiop"),
    }
    assert json.dumps(canonical(model)) == json.dumps(canonical(model), sort_keys=True)


def test_equal_settings_have_equal_canonical_forms(load):
    spelled = yaml.safe_dump(json.loads(json.dumps(canonical(load(GOOD)))))
    assert json.dumps(canonical(load(spelled))) == json.dumps(canonical(load(GOOD)))
