"""Clusters of a pool whose artifacts were written by hand, without Ray."""

import numpy as np
import pyarrow as pa
import pytest
from ray.exceptions import RayTaskError

from operators.errors import InputError
from pipeline import kmeans
from pipeline import run as running
from pipeline.artifact import Artifact, publish_part, read_columns
from pipeline.clustering import KMeansFit, KMeansSettings
from pipeline.columns import embedding_field, fixed_binary
from pipeline.iterations import UNFINISHED, State
from pipeline.kmeans_worker import Setup, Worker
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.steps.clusters import cluster, fit_of
from pipeline.storage import Store


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    x_ND = np.eye(4, dtype=np.float16)
    columns = {
        "samples": (pa.field("uid", pa.binary(16)), pa.array([bytes([row]) * 16 for row in range(4)], pa.binary(16))),
        "raw.image": (embedding_field("embedding", 4), fixed_binary(x_ND, np.ones(4, dtype=bool))),
    }
    store = Store(str(tmp_path))
    pool = Pool.model_validate({"format": "webdataset", "path": str(tmp_path)})
    run = Run(store, pool, [], seed=0, models={}, workers=1, threads=1, progress=Progress())
    for name, (field, column) in columns.items():
        table = pa.table([column], schema=pa.schema([field]))
        part = publish_part(store, f"{name}/x", Part("a.tar", "p", "", 0, 0, ""), [table], table.schema)
        run.artifacts[name] = Artifact(name, f"{name}/x", (part,))
    run.embeddings["raw", "image"] = run.artifacts["raw.image"]
    return run


def test_a_fit_outlives_the_run_that_made_it(run, monkeypatch):
    fitted = KMeansFit(np.eye(4)[:2], [0.75, 0.5], 1, np.array([2, 2]), np.array([1.0, 1.0]))
    calls = []

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(kmeans, "fit", lambda *args, **kwargs: calls.append(1) or fitted)
    with monkeypatch.context() as kill:
        kill.setattr(running, "spread", killed)
        with pytest.raises(KeyboardInterrupt):
            cluster(run, "prune", "raw", KMeansSettings(clusters=2))
    monkeypatch.setattr(running, "spread", lambda function, items, *, workers, num_cpus: map(function, items))
    artifact = cluster(run, "prune", "raw", KMeansSettings(clusters=2))
    assert len(calls) == 1
    assert (artifact.info["inertia"], artifact.info["iterations"]) == ([0.75, 0.5], 1)
    fit = fit_of(run.store, artifact.info)
    np.testing.assert_array_equal(fit.centroids_KD, fitted.centroids_KD)
    np.testing.assert_array_equal(fit.sizes_K, [2, 2])
    assert (fit.inertia, fit.iterations) == ((0.75, 0.5), 1)
    table = read_columns(run.store, artifact.parts[0].path)
    assert table["cluster"].to_pylist()[:2] == [0, 1]
    assert table["similarity"].to_pylist() == [1.0, 1.0, 0.0, 0.0]


def test_auto_euclidean_and_a_search_by_groups_are_recorded(run, monkeypatch):
    asked = []

    def fit(blocks, settings, *, saved, **others):
        (load,) = blocks
        assert [len(x_BD) for x_BD, _, _ in load()] == [4]
        saved.save(State(centroids_KD))
        asked.append(settings)
        return KMeansFit(centroids_KD, [0.5], 0, np.array([2, 2]), np.array([1.0, 1.0]), 3, 0.5)

    centroids_KD = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25]])
    monkeypatch.setattr(kmeans, "fit", fit)
    monkeypatch.setattr(running, "spread", lambda function, items, *, workers, num_cpus: map(function, items))
    artifact = cluster(run, "prune", "raw", KMeansSettings(clusters="auto", metric="euclidean", search="two_level"))
    assert [(settings.clusters, settings.search) for settings in asked] == [(2, "two_level")]
    assert (artifact.info["clusters"], artifact.info["rows_fitted"], artifact.info["recall"]) == (2, 3, 0.5)
    found = fit_of(run.store, artifact.info)
    assert (found.metric, found.two_level, found.rows, found.recall) == ("euclidean", True, 3, 0.5)
    np.testing.assert_allclose(np.linalg.norm(found.unit_KD, axis=1), 1, atol=1e-8)
    table = read_columns(run.store, artifact.parts[0].path)
    assert table["cluster"].to_pylist() == [0, 0, 1, 1]
    assert table["similarity"].to_pylist() == [0.75, 0.75, 0.6875, 0.6875]  # 1 - |x - c|^2 / 2
    assert not run.store.find(f"{artifact.folder}/{UNFINISHED}")


def test_fewer_embeddings_than_clusters(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise InputError("clusters must be at most ...")

    monkeypatch.setattr(kmeans, "fit", refuse)
    with pytest.raises(InputError, match=r"^prune\.clusters must be at most \.\.\.$"):
        cluster(run, "prune", "raw", KMeansSettings(clusters=2))


def test_an_error_of_a_loader_stays_as_it_is(run, monkeypatch):
    error = RayTaskError("step", "...", InputError("part 3 must be readable, got nothing")).as_instanceof_cause()

    def lose(*args, **kwargs):
        raise error

    monkeypatch.setattr(kmeans, "fit", lose)
    with pytest.raises(InputError) as raised:
        cluster(run, "prune", "raw", KMeansSettings(clusters=2))
    assert raised.value is error


def test_rows_are_assigned_with_as_many_cpus_as_threads(run, monkeypatch):
    run.workers, run.threads, asked = 4, 3, []

    def spread(function, items, **settings):
        asked.append(settings)
        return map(function, items)

    fitted = KMeansFit(np.eye(4)[:2], [0.5], 0, np.array([2, 2]), np.array([1.0, 1.0]))
    monkeypatch.setattr(kmeans, "fit", lambda *args, **kwargs: fitted)
    monkeypatch.setattr(running, "spread", spread)
    cluster(run, "prune", "raw", KMeansSettings(clusters=2))
    assert asked == [{"workers": 4, "num_cpus": 3}]


def test_counting_rows_makes_no_keys():
    none = np.zeros(2, np.uint64)
    setup = Setup(KMeansSettings(clusters=1), seed=0, threads=1, on_gpus=False, sample=None)
    worker = Worker(lambda: [(np.eye(2, dtype=np.float16), none, none)], setup)
    assert worker.num_rows() == 2
    assert "_keys" not in vars(worker)
