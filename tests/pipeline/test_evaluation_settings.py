"""The config of `winnow evaluate`, class lists, DataComp's folder: what is taken and what is refused. No Ray."""

import json

import pytest
import yaml

from operators.errors import ConfigError, InputError, WorkspaceError
from pipeline.config.loader import load_config
from pipeline.evaluation.evaluate import check, expand
from pipeline.evaluation.settings import Evaluation
from pipeline.evaluation.suite import expand_suite
from pipeline.evaluation.task_settings import DatacompSuite
from pipeline.labels.lists import read_classes, read_templates
from tests.small_pools import jpeg, write_tar

CLIP = {"library": "open_clip", "name": "ViT-B-32", "weights": "random"}
CIFAR = {
    "task": "classification",
    "name": "cifar10",
    "data": {"format": "images", "path": "images"},
    "classes": ["cat", "dog"],
}
PROBE = {"task": "linear_probe", "name": "probe", "train": CIFAR["data"], "test": CIFAR["data"]}


def parse(*tasks, **changes):
    settings = {"workspace": "w", "models": {"clip": CLIP}, "tasks": list(tasks)}
    return Evaluation.model_validate(settings | changes)


@pytest.fixture
def refuse(tmp_path):
    """The message that a wrong config gets."""

    def refuse(*tasks, **changes):
        settings = {"workspace": "w", "models": {"clip": CLIP}, "tasks": list(tasks)} | changes
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        with pytest.raises(ConfigError) as caught:
            load_config(str(tmp_path / "e.yaml"), Evaluation)
        return str(caught.value)

    return refuse


def write_suite(folder, **tasks):
    """A folder for each task: (classes, templates, tars), each tar a list of samples."""
    for name, (classes, templates, tars) in tasks.items():
        home = folder / f"wds_{name}_test"
        (home / "test").mkdir(parents=True)
        (home / "classnames.txt").write_text("".join(f"{line}\n" for line in classes))
        (home / "zeroshot_classification_templates.txt").write_text("".join(f"{line}\n" for line in templates))
        (home / "test" / "nshards.txt").write_text(str(len(tars)))
        for number, samples in enumerate(tars):
            write_tar(home / "test" / f"{number}.tar", samples)
    return folder


SAMPLE = {"jpg": jpeg(1), "cls": b"0"}


def test_a_task_of_datacomps_name_has_its_metric_and_its_place_in_the_table():
    tasks = [CIFAR, {**CIFAR, "name": "vtab/pets"}, {**CIFAR, "name": "wilds/fmow"}, {**CIFAR, "name": "mine"}]
    retrieval = {"task": "retrieval", "name": "retrieval/flickr30k", "data": CIFAR["data"]}
    config = parse(*tasks, retrieval, {**PROBE, "name": "vtab/dtd"})
    assert [(task.dataset, task.main_metric) for task in config.tasks] == [
        ("CIFAR-10", "acc1"),
        ("Oxford-IIIT Pet", "mean_per_class_recall"),
        ("FMoW", "acc1"),  # without groups there is no worst one
        ("mine", "acc1"),
        ("Flickr", "mean_recall@1"),
        ("vtab/dtd", "acc1"),
    ]
    grouped = parse({**CIFAR, "name": "wilds/fmow", "group_field": "region"}).tasks[0]
    assert grouped.main_metric == "acc_worst_region"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"task": "classify"}, "tasks.0 must have a task: one of classification, retrieval, linear_probe"),
        ({**CIFAR, "templates": ["a photo"]}, "cifar10.templates.0 must hold {c} where the class goes, got 'a photo'"),
        (
            {**CIFAR, "name": "retrieval/flickr30k"},
            "name must not be that of a task of retrieval in DataComp, where this is one of classification, got 'retr",
        ),
        ({**PROBE, "name": "misc/winogavil"}, "name must not be that of a task of association in DataComp, where this"),
        (
            {"task": "retrieval", "name": "cifar10", "data": CIFAR["data"]},
            "name must not be that of a task of classification in DataComp, where this is one of retrieval, got 'cifar",
        ),
        ({**CIFAR, "classes": []}, "cifar10.classes must "),
        ({**CIFAR, "metric": "acc_wg"}, "cifar10.metric must be used with group_field, got acc_wg without it"),
        ({**CIFAR, "metric": "acc2"}, "cifar10.metric must be one of acc1, acc5, mean_per_class_recall, F1-macro_all"),
        ({**CIFAR, "label": "x"}, "cifar10.label is not a known key, did you mean label_field?"),
        ({**CIFAR, "name": "../x"}, "name must match the pattern"),
        ({**PROBE, "l2": 0}, "probe.l2 must be greater than 0, got 0"),
        ({**CIFAR, "data": {"format": "datacomp", "path": "x"}}, "must be one of images: a model must be library"),
    ],
)
def test_a_wrong_task_is_told_from_its_key(refuse, task, message):
    assert message in refuse(task)


def test_names_are_unique(refuse):
    assert "probe.name must be unique, got 'probe' twice (" in refuse(PROBE, PROBE)


def test_a_model_without_a_text_tower_can_be_probed_only(refuse):
    pixels = {"raw": {"library": "pixels"}}
    assert parse(PROBE, models=pixels).models["raw"].library == "pixels"
    message = refuse(PROBE, CIFAR, models=pixels)
    assert "models.raw.library must be one with a text tower for classification, got pixels (" in message


def test_lists_of_classes_and_templates(tmp_path):
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    (tmp_path / "classnames.txt").write_text(" cat\ndog house\n\n")
    (tmp_path / "templates.txt").write_text("a {c}.\n{c}")
    assert read_classes(str(tmp_path / "classes.json")) == ("cat", "dog")
    assert read_classes(str(tmp_path / "classnames.txt")) == ("cat", "dog house")
    assert read_templates(str(tmp_path / "templates.txt")) == ("a {c}.", "{c}")
    assert read_classes(["a"]) == ("a",)
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfcat\r\ncrane\r\ncrane\x0bbird\r\n\r\n")
    assert read_classes(str(tmp_path / "marked.txt")) == ("cat", "crane", "crane\x0bbird")
    (tmp_path / "marked.json").write_bytes(b'\xef\xbb\xbf["crane", "crane"]')
    assert read_classes(str(tmp_path / "marked.json")) == ("crane", "crane")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", b'{"a": 1}', "must be a JSON list of texts, got a dict"),
        ("c.json", b"[1", "must be a JSON list of texts, got Expecting"),
        ("c.json", b'["a", 3]', "must hold a text in each place, got 3 in place 2"),
        ("c.txt", b"a\n\nb\n", "must hold a text in each line, got '' in line 2"),
        ("c.txt", b"\n", "must hold at least one entry of classes, got none"),
        ("c.txt", b"\xff\xfe", "must be UTF-8 text, got "),
        ("c.txt", None, "must exist, got no such file"),
    ],
)
def test_a_wrong_list_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_classes(str(tmp_path / name))
    assert f"{tmp_path / name} {message}" in str(caught.value)


@pytest.mark.parametrize("url", ["{folder}", "nope://a/c.txt"])
def test_a_list_that_cannot_be_read_is_named(tmp_path, url):
    with pytest.raises(InputError, match=r"(nope://a/c\.txt|test_a_list.*) must be a readable file, got \w+Error: "):
        read_classes(url.format(folder=tmp_path))
    with pytest.raises(InputError, match=r"captions\.classes must hold a text in each place, got ' ' in place 2"):
        read_classes(["a", " "], key="captions.classes")


def test_templates_in_a_file_need_a_place_for_the_class(tmp_path):
    (tmp_path / "t.txt").write_text("a {c}\na photo\n")
    with pytest.raises(InputError, match=r"t\.txt must hold \{c\} in each template, got 'a photo' as number 2"):
        read_templates(str(tmp_path / "t.txt"))


def test_a_suite_is_its_folders(tmp_path):
    sets = {"vtab-pets": (["cat", "dog"], ["a {c}"], [[SAMPLE], [SAMPLE]]), "wilds-fmow": (["a"], ["{c}"], [[SAMPLE]])}
    write_suite(tmp_path, **sets, mine=(["x"], ["{c}"], [[SAMPLE]]))
    (tmp_path / "wds_fairface_test").mkdir()
    (tmp_path / "other").mkdir()
    suite = DatacompSuite(task="classification", format="datacomp", path=str(tmp_path))
    tasks = expand_suite(suite)
    assert [(task.name, task.dataset, task.main_metric, task.group_field) for task in tasks] == [
        ("mine", "mine", "acc1", None),
        ("vtab/pets", "Oxford-IIIT Pet", "mean_per_class_recall", None),
        ("wilds/fmow", "FMoW", "acc_worst_region", "npy"),
    ]
    assert (tasks[1].classes, tasks[1].templates) == (("cat", "dog"), ("a {c}",))
    assert tasks[1].data.sources[0].path == f"{tmp_path}/wds_vtab-pets_test/test/*.tar"
    assert [task.name for task in expand_suite(suite.model_copy(update={"only": ("mine",)}))] == ["mine"]
    with pytest.raises(InputError, match=r"only must name tasks of .*, got 'vtab/pet'; did you mean 'vtab/pets'\?"):
        expand_suite(suite.model_copy(update={"only": ("vtab/pet",)}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda home: (home / "classnames.txt").unlink(), r"classnames\.txt must exist, got no such file"),
        (
            lambda home: (home / "zeroshot_classification_templates.txt").write_text("a photo"),
            r"templates\.txt must hold \{c\} in each template, got 'a photo' as number 1",
        ),
        (lambda home: (home / "test/nshards.txt").unlink(), r"nshards\.txt must exist, got no such file"),
        (
            lambda home: (home / "test/nshards.txt").write_text("two"),
            r"nshards\.txt must hold a whole number of at least 1, got 'two'",
        ),
        (
            lambda home: (home / "test/1.tar").unlink(),
            r"test must hold the 2 tars of nshards\.txt, got 1 without 1\.tar",
        ),
        (
            lambda home: (home / "test/nshards.txt").write_text("1\n"),
            r"test must hold the 1 tars of nshards\.txt, got 2 with also 1\.tar",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, spoil, message):
    write_suite(tmp_path, mine=(["x"], ["{c}"], [[SAMPLE], [SAMPLE]]))
    spoil(tmp_path / "wds_mine_test")
    with pytest.raises(InputError, match=message):
        expand(parse({"task": "classification", "format": "datacomp", "path": str(tmp_path)}))


def test_a_suite_must_be_there(tmp_path):
    for path, message in [(tmp_path / "none", "must exist, got"), (tmp_path, "must hold folders named wds_TASK_test")]:
        with pytest.raises(InputError, match=message):
            expand(parse({"task": "classification", "format": "datacomp", "path": str(path)}))


def test_a_task_of_a_suite_may_not_come_twice(tmp_path):
    write_suite(tmp_path, cifar10=(["x"], ["{c}"], [[SAMPLE]]))
    with pytest.raises(ConfigError, match=r"names of tasks must be unique, those of suites too, got 'cifar10' twice"):
        expand(parse(CIFAR, {"task": "classification", "format": "datacomp", "path": str(tmp_path)}))


def test_what_is_not_there_is_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^tasks\.cifar10\.data: pool path must exist, got images"):
        check(parse(CIFAR))
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.jpg").write_bytes(jpeg(1))
    check(parse(CIFAR))
    (tmp_path / "w" / "summary.json").write_text('{"steps": [], "kept": 3}')
    with pytest.raises(WorkspaceError, match=r"^workspace must be of evaluations only, .*, got that of another kind"):
        check(parse(CIFAR))
    (tmp_path / "w" / "summary.json").write_text('{"steps": [], "results": [], "aggregates": {}}')
    with pytest.raises(InputError, match=r"names\.json must exist"):
        check(parse({**PROBE, "classes": str(tmp_path / "names.json")}))
    assert json.loads(json.dumps(parse(CIFAR).model_dump(mode="json")))["tasks"][0]["name"] == "cifar10"


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = {"task": "classification", "format": "datacomp", "path": "sets"}
    resolved = parse({**CIFAR, "classes": "c.txt"}, {**PROBE, "classes": "p.txt"}, suite).resolved()
    first, probe, suite = resolved.tasks
    assert first.data.sources[0].path == f"{tmp_path}/images"
    assert (first.classes, first.templates) == (f"{tmp_path}/c.txt", ("a photo of a {c}.",))
    assert probe.test.sources[0].path == f"{tmp_path}/images"
    assert probe.classes == f"{tmp_path}/p.txt"
    assert suite.path == f"{tmp_path}/sets"
    assert resolved.workspace == f"{tmp_path}/w"
