"""The config of a comparison: what it makes of selections, and what it says of a wrong one and where."""

import pytest
import ray
import yaml

from operators.errors import ConfigError
from pipeline.comparison.selections import evaluation_sources
from pipeline.comparison.settings import DRAW, KEPT_OUT, Comparison
from pipeline.comparison.trainings import side_by_side
from pipeline.config.loader import load_config
from pipeline.pool import Source

CONFIG = {
    "workspace": "w",
    "pool": {"format": "webdataset", "path": "pool/*.tar"},
    "models": {"raw": {"library": "pixels", "size": 8}},
    "decontaminate": {"model": "raw", "epsilon": 0.02},
    "selections": {
        "all": [],
        "random": {"like": "small"},
        "small": [{"step": "filter", "column": "bytes", "keep_fraction": 0.5}],
    },
    "training": {"model": {"name": "ViT-B-32"}, "samples_seen": 100, "batch_size": 10},
    "evaluation": [
        {
            "task": "classification",
            "name": "scenes",
            "data": {"format": "webdataset", "path": "test/*.tar"},
            "classes": ["a", "b"],
        }
    ],
}


@pytest.fixture
def load(tmp_path):
    def load(*overrides, **changes):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG | changes, sort_keys=False))
        return load_config(str(tmp_path / "c.yaml"), Comparison, overrides)

    return load


def test_what_a_selection_is_made_by(load):
    config = load()
    sources = [Source(format="webdataset", path="test/*.tar")]
    assert [step.step for step in config.curation("all").steps] == []
    assert [step.step for step in config.curation("small", sources).steps] == ["decontaminate", "filter"]
    assert config.curation("small", sources).steps[0].title == KEPT_OUT
    drawn = config.curation("random", sources, keep=7, seed=3)
    assert (drawn.seed, drawn.steps[-1].title, drawn.steps[-1].keep, drawn.steps[-1].draw) == (3, DRAW, 7, True)
    assert (config.against, config.randoms) == ("all", ("random",))
    assert config.curation("small", seed=3).seed == 0  # only draws go by the seeds of the trainings


def test_a_selection_may_be_what_a_snapshot_kept(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = {"old": {"workspace": "nightly", "snapshot": 3}, "now": {"workspace": "nightly"}, "drawn": {"like": "old"}}
    config = load(selections=chosen, decontaminate=None).resolved()
    old, now = config.selections["old"], config.selections["now"]
    assert (old.workspace, old.snapshot, old.kinds) == (f"{tmp_path}/nightly", 3, ("snapshot 3",))
    assert (now.snapshot, now.kinds) == (None, ("another workspace",))
    assert config.randoms == ("drawn",)
    with pytest.raises(ConfigError, match=r"selections\.old\.workspace must be steps where decontaminate is asked for"):
        load(selections=chosen)


def test_paths_are_absolute_for_workers(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load().resolved()
    assert config.pool.sources[0].path == f"{tmp_path}/pool/*.tar"
    assert config.workspace == f"{tmp_path}/w"
    assert config.evaluation[0].data.sources[0].path == f"{tmp_path}/test/*.tar"
    assert config.resolved() == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selections.random.like=tiny", r"random.like must name a selection of steps \(all, small\), got 'tiny'"),
        ("selections.random.like=random", r"random.like must name a selection of steps \(all, small\), got 'random'"),
        ("baseline=none", r"baseline must name one of the selections \(all, random, small\), got 'none'"),
        ("decontaminate.model=clip", r"decontaminate.model must name one of the models \(raw\), got 'clip'"),
        ("seeds=[1, 1]", r"seeds must name each seed once, got \[1, 1\]"),
        ("training.seed=1", r"training.seed is not a known key"),
        ("selections={all: []}", r"selections must have at least 2 items"),
        ("selections.small.filter.score=s", r"needs exactly one of score, column and draw"),
        ("selections.small.filter.keep_fraction=2", r"filter.keep_fraction must be in \(0, 1\], got 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(load, override, message):
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_a_step_that_reads_what_is_not_there(load):
    steps = [{"step": "score", "model": "raw"}]
    with pytest.raises(ConfigError, match=r"must name a model with a text tower, got 'raw'.*c.yaml:\d+"):
        load(selections={"all": [], "scored": steps})
    with pytest.raises(ConfigError, match=r"must be one with images, which models are trained on"):
        load(pool={"format": "clip_retrieval", "path": "pool"})


def test_a_selection_may_decontaminate_by_itself_too(load):
    own = {"step": "decontaminate", "model": "raw", "epsilon": 0.1, "against": [{"format": "images", "path": "x"}]}
    config = load(selections={"all": [], "own": [own]})
    sources = [Source(format="webdataset", path="test/*.tar")]
    assert [step.title for step in config.curation("own", sources).steps] == [KEPT_OUT, "decontaminate"]
    with pytest.raises(
        ConfigError, match=r"evaluation\.name must be unique, got 'decontaminate_evaluation', .*c\.yaml"
    ):
        load(selections={"all": [], "own": [own | {"name": KEPT_OUT}]})


def test_evaluation_sets_are_looked_for_whether_they_have_captions_or_not(load):
    source = {"format": "webdataset", "path": "a.tar"}
    pool = {"sources": [source, source | {"require_text": True}]}
    task = {"task": "classification", "name": "vtab/dtd", "data": pool, "classes": ["a"]}
    found = evaluation_sources(load(evaluation=[task]).evaluation)
    assert [(one.name, one.require_text) for one in found] == [("vtab.dtd.data.0", False), ("vtab.dtd.data.1", True)]


@pytest.mark.parametrize(
    ("nodes", "changes", "at_once", "threads"),
    [
        ([4], {}, 4, 1),
        ([4], {"trainings_at_once": 2}, 2, 2),
        ([4, 2], {"trainings_at_once": 3}, 3, 2),
        ([5, 1], {"trainings_at_once": 2}, 2, 2),  # not 3: the second would wait for the first
        ([8, 8, 8], {}, 6, 4),
    ],
)
def test_trainings_run_side_by_side_where_the_nodes_have_room(load, monkeypatch, nodes, changes, at_once, threads):
    live = [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: live)
    number, config = side_by_side(load(**changes), jobs=6)
    assert (number, config.training.resources.threads) == (at_once, threads)
