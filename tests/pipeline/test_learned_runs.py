"""Filters that are trained inside a run: a classifier of embeddings on any number of workers, and networks on images.

Real pools of small coloured squares: trusted ones are bright and told of truly; of the pool half are neither.
"""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from operators.embeddings import to_unit_float16
from operators.errors import InputError
from operators.hashing import keyed_hash
from operators.uids import split_uids
from pipeline.artifact import read_columns
from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.steps.registry import BinaryEmbeddings
from tests.embedded_pools import embedded_run, uid_of
from tests.small_pools import write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]

ROWS, TRUSTED, DIMS = 300, 80, 8
MODEL = {"library": "pixels", "size": 8}
SOURCE = {"format": "images", "path": "unused"}


def scores(run: Run, artifact) -> dict[str, float | None]:
    """The score of each row, by uid in hex."""
    found = {}
    for samples, part in zip(run.samples.parts, artifact.parts, strict=True):
        uids = read_columns(run.store, samples.path, ["uid"])["uid"].to_pylist()
        values = read_columns(run.store, part.path, ["score"])["score"].to_pylist()
        found |= dict(zip([uid.hex() for uid in uids], values, strict=True))
    return found


class TestEmbeddings:
    @pytest.fixture
    def rows(self):
        """The pool: its first half looks like the trusted set."""
        rng = np.random.default_rng(0)
        shift = np.where(np.arange(ROWS) < ROWS // 2, 1.0, -0.5)[:, None]
        x_ND = to_unit_float16(rng.standard_normal((ROWS, DIMS)) + shift)[0]
        x_ND[7] = 0  # not embedded
        return x_ND

    @pytest.fixture
    def made(self, tmp_path, monkeypatch, rows):
        """Makes a run over the pool, beside a trusted set that has uids, and ten images, in common with it."""

        def made(name: str, *, workers: int = 2, order=None) -> Run:
            rng = np.random.default_rng(1)
            trusted_ND = to_unit_float16(rng.standard_normal((TRUSTED, DIMS)) + 1.0)[0]
            hashes = [i.to_bytes(16, "big") for i in range(ROWS + TRUSTED)]
            theirs = embedded_run(
                tmp_path / name / "trusted",
                trusted_ND,
                columns={"image_hash": hashes[ROWS - 10 : ROWS] + hashes[ROWS + 10 :]},
            )
            ours = embedded_run(
                tmp_path / name, rows, workers=workers, order=order, columns={"image_hash": hashes[:ROWS]}
            )
            ours.models = theirs.models = {"raw": Curation.model_validate(config(Path(), Path(), [])).models["raw"]}
            theirs = inside(theirs, ours, "trusted/")
            monkeypatch.setattr("pipeline.steps.learned.embed_reference", lambda *_: theirs)
            return ours

        return made

    def test_a_classifier_is_the_same_on_any_workers_and_order_of_shards(self, made, rows):
        step = BinaryEmbeddings(step="binary_embeddings", model="raw", trusted=[SOURCE], negatives=200)
        run = made("one", workers=1)
        artifact = step.run(run)
        found = scores(run, artifact)
        values = np.array([found[uid_of(i).hex()] for i in range(ROWS)], dtype=float)
        assert np.isnan(values).nonzero()[0].tolist() == [7]
        assert roc_auc_score(np.delete(np.arange(ROWS) < ROWS // 2, 7), np.delete(values, 7)) > 0.95
        training = artifact.info["training"]
        assert (training["trusted"], training["negatives"]) == (TRUSTED, 200)
        uids = np.frombuffer(b"".join(map(uid_of, range(ROWS))), "V16")
        order = np.argsort(keyed_hash(*split_uids(uids), 0, "binary_embeddings.negatives"))
        drawn = set(order[order != 7][:200].tolist())
        own = {*range(TRUSTED), *range(ROWS - 10, ROWS)}  # by uid, and by image
        assert training["negatives_trusted"] == len(drawn & own)
        assert 0.6 < training["balanced_accuracy"] <= 1
        assert step.run(run).reused
        other = made("two", workers=3, order=[2, 0, 3, 1])
        again = step.run(other)
        assert scores(other, again) == found
        assert again.info["scored_by"] == artifact.info["scored_by"]

        file = f"{run.store.url}/{artifact.info['filter']}"
        trained = BinaryEmbeddings(step="binary_embeddings", model="raw", trained=file)
        trained.check()
        assert trained.scored_by(run.models) == artifact.info["scored_by"]
        assert scores(run, trained.run(run)) == found
        with pytest.raises(InputError, match=r"binary_embeddings\.modality must be image, as in .*, got both"):
            BinaryEmbeddings(step="binary_embeddings", model="raw", modality="both", trained=file).check()
        run.models = {"raw": run.models["raw"].model_copy(update={"size": 9})}
        with pytest.raises(InputError, match=r"binary_embeddings\.model must be that of .*\.safetensors, which is"):
            trained.run(run)

    def test_a_trusted_set_of_one_is_refused(self, made, monkeypatch):
        step = BinaryEmbeddings(step="binary_embeddings", model="raw", trusted=[SOURCE])
        run = made("one")
        usable = lambda modality, table: np.zeros(table.num_rows, dtype=bool)  # noqa: E731
        monkeypatch.setattr("pipeline.steps.binary_embeddings.embedded", usable)
        rule = r"binary_embeddings\.trusted must hold at least 2 samples with image embeddings, got 0 of 80"
        with pytest.raises(InputError, match=rule):
            step.run(run)

    def test_more_rows_than_a_task_can_hold_are_refused(self, made, monkeypatch):
        monkeypatch.setattr("pipeline.filters.memory.most_memory", lambda: 4096)
        rule = r"^binary_embeddings\.training must learn from at most 0\.0 GiB .*: 3 times 160 rows of .*; lower negat"
        with pytest.raises(InputError, match=rule):
            BinaryEmbeddings(step="binary_embeddings", model="raw", trusted=[SOURCE]).run(made("one"))


def inside(theirs: Run, ours: Run, folder: str) -> Run:
    """A run whose artifacts lie in a folder of another's workspace."""
    moved = dataclasses.replace(theirs, store=ours.store, artifacts={}, embeddings={}, verdicts=[])

    def move(artifact):
        parts = [dataclasses.replace(part, path=f"{folder}{part.path}") for part in artifact.parts]
        return dataclasses.replace(artifact, folder=f"{folder}{artifact.folder}", parts=tuple(parts))

    moved.artifacts["samples"] = move(theirs.artifacts["samples"])
    moved.embeddings["raw", "image"] = moved.artifacts["raw.image"] = move(theirs.embeddings["raw", "image"])
    return moved


COLOURS = {"red": (230, 40, 40), "green": (40, 210, 50), "blue": (50, 60, 230), "yellow": (225, 215, 40)}


def square(rng: np.random.Generator, number: int, *, trusted: bool) -> dict[str, bytes]:
    """A bright square with its true caption, or a dim one with another colour's."""
    names = list(COLOURS)
    colour = number % 4
    noise = rng.integers(-30, 30, (16, 16, 3))
    pixels = np.array(COLOURS[names[colour]]) * (1.0 if trusted else 0.35) + noise
    image = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image, "PNG")
    told = names[colour] if trusted else names[(colour + 1 + number // 4 % 3) % 4]
    return {"png": image.getvalue(), "txt": f"a {told} square".encode()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`trusted.tar` of 120 good squares, and a pool of 60 good and 60 bad ones in two tars."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    (folder / "pool").mkdir()
    write_tar(folder / "trusted.tar", [square(rng, i, trusted=True) for i in range(120)])
    for shard in range(2):
        samples = [square(rng, i, trusted=i < 30) for i in range(60)]
        samples[59].pop("txt")
        write_tar(folder / "pool" / f"{shard}.tar", samples)
    return folder


def config(folder: Path, workspace: Path, steps: list[dict]) -> dict:
    return {
        "pool": {"format": "webdataset", "path": f"{folder}/pool/*.tar", "require_text": False, "name": "pool"},
        "workspace": str(workspace),
        "models": {"raw": MODEL},
        "report": bool(steps),
        "steps": steps,
    }


def steps_of(folder: Path) -> list[dict]:
    trusted = {"format": "webdataset", "path": f"{folder}/trusted.tar"}
    small = {"image_size": 16, "batch_size": 32, "learning_rate": 3e-3}
    diversity = {"model": "raw", "clusters": 8, "collapse_below": 1.0}
    return [
        {"step": "binary_images", "trusted": trusted, "model": "test_resnet", "samples_seen": 1600, **small},
        {"step": "masked_autoencoder", "trusted": trusted, "samples_seen": 6000, "width": 64, "depth": 2, "tokens": 4}
        | small,
        {"step": "filter", "score": "binary_images", "keep": 30, "diversity": diversity},
    ]


@pytest.fixture(scope="module")
def curated(folder, tmp_path_factory, ray_here):
    workspace = tmp_path_factory.mktemp("work")
    settings = Curation.model_validate(config(folder, workspace, steps_of(folder)))
    return settings, curate(settings, check(settings), workers=2, progress=Progress())


def test_networks_score_what_they_have_not_seen(curated):
    settings, summary = curated
    found = {}
    store = settings.store
    for kind in ("binary_images", "masked_autoencoder"):
        (manifest,) = [name for name in store.find(kind) if "/manifest-" in name]
        record = store.read_json(manifest)
        found[kind] = [
            value
            for part in record["parts"]
            for value in read_columns(store, part["path"], ["score"])["score"].to_pylist()
        ]
        assert record["info"]["training"]["trusted"] == 120
        assert record["info"]["filter"].endswith("/filter.safetensors")
    good = np.tile(np.arange(60) < 30, 2)
    assert roc_auc_score(good, found["binary_images"]) > 0.95
    worded = np.tile(np.arange(60) < 59, 2)
    assert [value is None for value in found["masked_autoencoder"]] == (~worded).tolist()
    values = np.array(found["masked_autoencoder"], dtype=float)[worded]
    assert roc_auc_score(good[worded], values) > 0.95
    assert summary.kept == 30


def test_a_filter_that_narrows_the_pool_is_warned_of(curated):
    settings, summary = curated
    store = settings.store
    (manifest,) = [name for name in store.find("filter") if "/manifest-" in name]
    info = store.read_json(manifest)["info"]
    before, drawn, after = (info["diversity"][name] for name in ("before", "at_random", "after"))
    assert (before["samples"], drawn["samples"], after["samples"]) == (120, 30, 30)
    assert after["effective"] < drawn["effective"] < before["effective"]
    (warning,) = info["warnings"]
    assert warning.startswith("filter: what it kept is far less diverse than as many samples at random")
    assert list(summary.warnings) == [warning]
    assert json.loads(store.read("summary.json"))["warnings"] == [warning]
    report = store.read("report.html").decode()
    assert "Diversity by 8 clusters" in report
    assert "effective clusters" in report


def test_a_second_run_trains_nothing(curated):
    settings, _ = curated
    again = curate(settings, check(settings), workers=1, progress=Progress())
    assert again.reused
    assert again.warnings
