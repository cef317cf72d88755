"""`decontaminate` on image folders, by their pixels, on Ray."""

import numpy as np
import pytest
from PIL import Image

from operators.errors import InputError, LimitExceeded
from pipeline.artifact import read_columns
from pipeline.curate import check, run_steps, start_run
from pipeline.curation import Curation
from pipeline.progress import Progress

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_here"),
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors"),  # more workers than chunks
]


def draw(number: int) -> Image.Image:
    pattern = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pattern).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("decontaminate")
    for name in ("pool", "seen", "unseen", "none"):
        (root / name).mkdir()
    for number in range(30):
        draw(number).save(root / "pool" / f"{number:02d}.png")
    draw(7).save(root / "seen" / "seven.jpg", quality=90)
    draw(21).resize((48, 48)).save(root / "seen" / "twenty-one.png")
    draw(100).save(root / "unseen" / "hundred.png")
    (root / "none" / "broken.png").write_bytes(b"no image")
    return root


def config(folders, workspace, *names: str) -> Curation:
    against = [{"format": "images", "path": str(folders / name), "name": name} for name in names]
    return Curation.model_validate(
        {
            "pool": {"format": "images", "path": str(folders / "pool"), "shard_size": 7},
            "workspace": str(workspace),
            "models": {"raw": {"library": "pixels", "size": 8}},
            "steps": [{"step": "decontaminate", "model": "raw", "against": against, "epsilon": 0.01}],
        }
    )


def details(settings: Curation, workers: int) -> list[dict[str, object]]:
    run = start_run(settings, check(settings), workers=workers, progress=Progress())
    artifact = list(run_steps(run, settings.steps))[-1]
    rows = []
    for samples, part in zip(run.samples.parts, artifact.parts, strict=True):
        keys = read_columns(run.store, samples.path, ["key"]).to_pylist()
        rows += [row | key for row, key in zip(read_columns(run.store, part.path).to_pylist(), keys, strict=True)]
    return rows


def test_what_an_evaluation_set_holds_goes(folders, tmp_path, monkeypatch):
    rows = details(config(folders, tmp_path / "a", "seen", "unseen"), workers=1)
    gone = {row["key"]: row for row in rows if not row["kept"]}
    assert set(gone) == {"07", "21"}
    for key, name in (("07", "seven"), ("21", "twenty-one")):
        assert gone[key]["reason"] == "contaminated"
        assert gone[key]["detail"]["evaluation_key"] == name
        assert gone[key]["detail"]["evaluation_shard"].startswith("seen/")
        assert gone[key]["detail"]["similarity"] > 0.99
    assert all(row["detail"]["similarity"] <= 0.99 for row in rows if row["kept"])
    monkeypatch.setattr("pipeline.steps.decontaminate._BLOCK_ROWS", 1)  # every evaluation image a block of its own
    assert details(config(folders, tmp_path / "b", "unseen", "seen"), workers=3) == rows


def test_a_set_without_images_is_an_error(folders, tmp_path):
    settings = config(folders, tmp_path, "none")
    rule = r"decontaminate\.against: at most 5\.00% of the 1 samples may be rejected .*undecodable_image 1"
    with pytest.raises(LimitExceeded, match=rule):
        details(settings, workers=1)
    lenient = settings.model_copy(update={"pool": settings.pool.model_copy(update={"max_reject_fraction": 1.0})})
    with pytest.raises(InputError, match=r"decontaminate\.against must hold at least one sound image, got none"):
        details(lenient, workers=1)


def test_a_set_that_is_not_there_is_found_before_any_work(folders, tmp_path):
    with pytest.raises(InputError, match="must exist"):
        check(config(folders, tmp_path, "elsewhere"))
