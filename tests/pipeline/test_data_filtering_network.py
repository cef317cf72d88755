"""The class that notebooks use: every form of input, and what comes out in the same form."""

from pathlib import Path

import numpy as np
import pytest
import ray.data

from operators.errors import InputError, ModelError
from pipeline.data_filtering_network import SCORE, DataFilteringNetwork
from pipeline.ledger import read_ledger
from pipeline.storage import Store
from pipeline.training.settings import Captions, Data
from tests.small_trainings import SOUND, pairs, training, write_pool

RECIPE = ("samples_seen", "batch_size", "optimizer", "schedule", "resources")


def network(folder: Path, workspace: str = "dfn") -> DataFilteringNetwork:
    config = training(folder, workspace)
    recipe = {key: getattr(config, key) for key in RECIPE} | {"model": config.model}
    return DataFilteringNetwork(folder / workspace, recipe)


def pool(folder: Path) -> dict[str, object]:
    return {"format": "webdataset", "path": f"{folder}/*.tar", "max_reject_fraction": 0.1}


def kept_uids(workspace: str) -> set[str]:
    rows = [row for table in read_ledger(Store(workspace)) for row in table.to_pylist()]
    return {row["uid"] for row in rows if row["verdict"] == "kept"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_here: None) -> Path:
    folder = tmp_path_factory.mktemp("dfn")
    write_pool(folder)
    result = network(folder).train(pool(folder))
    assert result.samples == SOUND
    return folder


@pytest.mark.ray
def test_a_pool_becomes_a_workspace_which_can_be_trained_on_and_filtered(trained: Path, tmp_path: Path) -> None:
    dfn = network(trained)
    assert dfn.threshold is None
    with pytest.raises(InputError, match="keep_fraction must be given where no threshold has been fixed yet"):
        dfn.filter(pool(trained))
    half = dfn.filter(pool(trained), 0.5)
    assert isinstance(half, str)
    kept = kept_uids(half)
    assert len(kept) == round(0.5 * SOUND)
    assert dfn.threshold is not None
    assert dfn.threshold.keep_fraction == 0.5
    dfn.save(tmp_path / "saved")
    loaded = DataFilteringNetwork.load(tmp_path / "saved", tmp_path / "elsewhere")
    assert loaded.threshold == dfn.threshold
    assert kept_uids(str(loaded.filter(pool(trained)))) == kept  # by the stored threshold
    fewer = kept_uids(str(dfn.filter(half, 0.4)))
    assert fewer < kept
    assert len(fewer) == round(0.4 * SOUND)  # the two steps stand in place of those of the earlier call
    assert kept_uids(half) == kept  # and the workspace that was given is as it was
    assert network(trained, "second").train(half).samples == len(kept_uids(half))
    with pytest.raises(InputError, match="captions of their own"):
        dfn.filter(Data(workspace=half, captions=Captions(field="label", classes=("red", "green", "blue", "white"))))


@pytest.mark.ray
def test_a_ray_dataset_becomes_one_of_the_kept_rows(trained: Path) -> None:
    for wrong, message in (
        (
            {"img": b"", "text": "a"},
            r"the Ray Dataset must have a column of encoded images \(image, .*got img, text",
        ),
        ({"image": b""}, r"the Ray Dataset must have a column of captions \(text, caption\), got image"),
        (
            {"image": 3, "text": "a"},
            r"the Ray Dataset must have its encoded images in a column of bytes, got image of",
        ),
    ):
        with pytest.raises(InputError, match=message):
            network(trained, "third").train(ray.data.from_items([wrong]))
    assert not list((trained / "third").glob("datasets/*/*"))
    rows = [{"png": pair["png"], "text": pair["txt"].decode(), "n": n} for n, pair in enumerate(pairs(30))]
    rows[4]["png"] = b"broken"
    dataset = ray.data.from_items(rows, override_num_blocks=3)
    dfn = network(trained, "third")
    assert dfn.train(dataset).samples == 29
    kept = dfn.filter(dataset, 0.4)
    assert isinstance(kept, ray.data.Dataset)
    found = sorted(kept.take_all(), key=lambda row: int(row["n"]))
    assert len(found) == round(0.4 * 29)
    assert all({key: row[key] for key in rows[0]} == rows[row["n"]] for row in found)
    assert dfn.threshold is not None
    assert min(row[SCORE] for row in found) == pytest.approx(dfn.threshold.value, abs=0)
    assert np.all(np.abs([row[SCORE] for row in found]) <= 1)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must hold a trained network, got none: train or load one"):
        DataFilteringNetwork(tmp_path).save(tmp_path / "saved")
    with pytest.raises(ModelError, match="must hold open_clip_model"):
        DataFilteringNetwork.load(tmp_path, tmp_path / "other")
    with pytest.raises(InputError, match="recipe must be given to DataFilteringNetwork in order to train"):
        DataFilteringNetwork(tmp_path).train(pool(tmp_path))
