"""`winnow evaluate` up to the point where Ray would start, and what it prints."""

import pytest
import yaml

from jobs.main import main
from pipeline.evaluation.results import Result
from tests.small_pools import jpeg

CLIP = {"library": "open_clip", "name": "ViT-B-32", "weights": "random"}


@pytest.fixture
def winnow_evaluate(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of two images; returns the exit code and all that was printed."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["cat", "dog"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").write_bytes(jpeg(number))
    task = {
        "task": "classification",
        "name": "pets",
        "data": {"format": "images", "path": "images"},
        "classes": ["cat", "dog"],
    }

    def run(*argv, model=CLIP, **changes):
        config = {"workspace": "w", "models": {"clip": model}, "tasks": [task | changes]}
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        code = main(["evaluate", "e.yaml", *argv])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"format": "images", "path": "none"}}, "winnow: tasks.pets.data: pool path must exist, got none"),
        ({"classes": "none.txt"}, "none.txt must exist, got no such file"),
        ({"templates": "e.yaml"}, "e.yaml must hold {c} in each template, got 'workspace: w' as number 1"),
        ({"model": CLIP | {"name": "ViT-B-99"}}, "winnow: models.clip: name must be "),
        ({"model": CLIP | {"weights": "runs/none/model"}}, "winnow: models.clip: weights must exist and be readable"),
        ({"model": {"library": "pixels"}}, "models.clip.library must be one with a text tower for classification"),
    ],
)
def test_what_is_wrong_is_said_before_ray_starts(winnow_evaluate, monkeypatch, changes, message):
    def no_ray(*args):
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr("pipeline.evaluation.evaluate.engine", no_ray)
    code, printed = winnow_evaluate(**changes)
    assert code == 2
    assert message in printed


def test_the_table(winnow_evaluate, monkeypatch):
    facts = {"task": "classification", "metrics": {"acc1": 0.5}, "metric": "acc1", "facts": {}, "outcomes": "o"}
    one = Result(
        **facts,
        key="pets",
        dataset="pets",
        model="clip",
        interval=(0.25, 0.75),
        num_samples=1234,
        num_classes=2,
        not_embedded=3,
        rejected={"undecodable_image": 2},
        damaged={"1.tar": "truncated"},
        train={"samples": 4000, "rejected": {"undecodable_image": 1}, "damaged": {"2.tar": "unreadable"}},
        seconds=1.25,
    )
    monkeypatch.setattr("jobs.evaluate.run_evaluation", lambda config, address: [one])
    code, printed = winnow_evaluate("--set", "bootstrap=10")
    assert code == 0
    assert "pets  clip   acc1      0.5  0.2500 to 0.7500    1,234         2  1.2 s" in printed
    assert "pets: 1,234 images evaluated; rejected: 2 undecodable_image" in printed
    assert "pets: damaged shard 1.tar (truncated)" in printed
    assert "pets: trained on 4,000 images; rejected: 1 undecodable_image" in printed
    assert "pets: damaged shard 2.tar of train (unreadable)" in printed
    assert "pets: clip could not embed 3 images, which count as wrong" in printed
    assert "DataComp" not in printed
