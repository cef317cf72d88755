"""Legend: N rows, K clusters, D dimensions."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from pydantic import ValidationError
from ray import cloudpickle

from operators.certified import assign
from operators.errors import InputError
from operators.kmeans import (
    inertia,
    initial_keys,
    lowest_keys,
    partial_sums,
    repair_empty,
    summed_similarity,
    unit_rows,
    update_centroids,
)
from pipeline.clustering import KMeansFit, KMeansSettings
from pipeline.kmeans import Loaded, Loader, fit

pytestmark = pytest.mark.ray

DIMS = 24


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    # 7 actors at once, and one of 4 threads: these CPUs are a count for the scheduler, not processors.
    ray.init(num_cpus=7, object_store_memory=300_000_000, include_dashboard=False, log_to_driver=False)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import a test module
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


def rows(num_rows: int) -> Loaded:
    generator = np.random.default_rng(0)
    directions_GD = generator.standard_normal((12, DIMS))
    x_ND = directions_GD[generator.integers(0, 12, num_rows)] + 0.5 * generator.standard_normal((num_rows, DIMS))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    high_N, low_N = generator.integers(0, 2**63, (2, num_rows), dtype=np.uint64)
    return x_ND.astype(np.float16), high_N, low_N


def some_rows(num_rows: int, index_M: NDArray[np.intp]) -> Loaded:
    x_ND, high_N, low_N = rows(num_rows)
    return x_ND[index_M], high_N[index_M], low_N[index_M]


def shuffled_loaders(num_rows: int, actors: int, seed: int) -> list[Loader]:
    """The rows in another order, dealt to actors in unequal parts."""
    generator = np.random.default_rng(seed)
    order_N = generator.permutation(num_rows)
    cuts = np.sort(generator.integers(0, num_rows, actors - 1))
    return [partial(some_rows, num_rows, index_M) for index_M in np.split(order_N, cuts)]


def fit_in_one_place(num_rows: int, clusters: int, iterations: int, seed: int) -> KMeansFit:
    """The same algorithm as a plain loop."""
    x_ND, high_N, low_N = rows(num_rows)
    centroids_KD = unit_rows(x_ND[lowest_keys(initial_keys(high_N, low_N, seed), clusters)])
    history = []
    for iteration in range(iterations + 1):
        sums_KD, counts_K = partial_sums(x_ND, assign(x_ND, centroids_KD)[0], clusters)
        similarity_K = summed_similarity(sums_KD, centroids_KD)
        history.append(inertia(similarity_K, counts_K))
        if iteration < iterations:
            centroids_KD = repair_empty(update_centroids(sums_KD, counts_K, centroids_KD), counts_K)
    return KMeansFit(centroids_KD, history, iterations, counts_K, similarity_K)


def assert_same_bytes(ours: KMeansFit, expected: KMeansFit) -> None:
    assert ours.centroids_KD.tobytes() == expected.centroids_KD.tobytes()
    assert ours.counts_K.tobytes() == expected.counts_K.tobytes()
    assert ours.similarity_K.tobytes() == expected.similarity_K.tobytes()
    assert ours.inertia == expected.inertia
    assert ours.iterations == expected.iterations


@pytest.mark.parametrize(("actors", "threads", "slice_bytes"), [(1, 4, 2**20), (3, 2, 7 * DIMS * 8), (7, 1, 2**20)])
def test_same_bytes_for_any_actors_threads_slices_and_order(
    actors: int, threads: int, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = KMeansSettings(clusters=30, iterations=4)
    monkeypatch.setattr("pipeline.kmeans._SLICE_BYTES", slice_bytes)
    ours = fit(shuffled_loaders(6000, actors, seed=actors), settings, seed=3, threads=threads)
    assert_same_bytes(ours, fit_in_one_place(6000, 30, 4, seed=3))
    assert ours.counts_K.sum() == 6000


def test_stops_when_settled_and_reports_each_pass() -> None:
    seen: list[tuple[int, float]] = []
    settings = KMeansSettings(clusters=3, iterations=200)
    ours = fit([partial(rows, 500)], settings, seed=0, threads=1, progress=lambda *pair: seen.append(pair))
    assert 0 < ours.iterations < 200
    assert seen == list(enumerate(ours.inertia))
    x_ND, _, _ = rows(500)
    sums_KD, counts_K = partial_sums(x_ND, assign(x_ND, ours.centroids_KD)[0], 3)
    np.testing.assert_array_equal(update_centroids(sums_KD, counts_K, ours.centroids_KD), ours.centroids_KD)


def one_row_many_times(num_rows: int) -> Loaded:
    x_ND = np.tile(np.eye(1, DIMS), (num_rows, 1)).astype(np.float16)
    return x_ND, np.zeros(num_rows, dtype=np.uint64), np.arange(num_rows, dtype=np.uint64)


def test_identical_rows_and_as_many_clusters_as_rows() -> None:
    ours = fit([partial(one_row_many_times, 5)], KMeansSettings(clusters=5, iterations=30), seed=0, threads=1)
    assert ours.iterations < 30
    assert ours.counts_K.sum() == 5
    assert ours.inertia[-1] == pytest.approx(0, abs=1e-5)


def test_more_clusters_than_rows() -> None:
    with pytest.raises(InputError, match="clusters must be at most the number of rows, got 9 clusters for 8 rows"):
        fit([partial(rows, 8)], KMeansSettings(clusters=9), seed=0, threads=1)


def no_table() -> Loaded:
    raise InputError("part 3 must be readable, got nothing")


def test_a_loader_fails_as_itself() -> None:
    with pytest.raises(InputError, match="part 3 must be readable, got nothing"):
        fit([no_table], KMeansSettings(clusters=2), seed=0, threads=1)


def counted_rows(num_rows: int, folder: Path) -> Loaded:
    (folder / f"{os.getpid()}").touch()
    return rows(num_rows)


def test_a_lost_actor_changes_nothing(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_once(updates: int, _: float) -> None:
        if updates == 2:
            (loaded,) = tmp_path.iterdir()
            killed.append(int(loaded.name))
            os.kill(killed[0], 9)

    loader = partial(counted_rows, 600, tmp_path)
    settings = KMeansSettings(clusters=10, iterations=4)
    ours = fit([loader], settings, seed=3, threads=1, progress=kill_once)
    assert len(killed) == 1
    assert len(list(tmp_path.iterdir())) == 2
    assert_same_bytes(ours, fit_in_one_place(600, 10, 4, seed=3))


@pytest.mark.parametrize("bad", [{"clusters": 0}, {"clusters": 2, "tolerance": -1}, {"clusters": 2, "ratio": 1}])
def test_settings_are_strict(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        KMeansSettings(**bad)  # type: ignore[arg-type]
