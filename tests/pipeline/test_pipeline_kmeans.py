"""Legend: N rows, K clusters, D dimensions."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from operators.screen import measure_rows
from operators.seeding import Oversampling, round_hash, spread_out
from pipeline.clustering import KMeansFit, KMeansSettings
from pipeline.first_centroids import ROUNDS
from pipeline.iterations import Iterations
from pipeline.kmeans import fit
from pipeline.kmeans_keys import Loaded, Loader
from pipeline.storage import Store
from tests.local_ray import start_ray

pytestmark = pytest.mark.ray

DIMS = 24


@pytest.fixture(scope="module", autouse=True)
def seven_actors_at_once(no_ray) -> Iterator[None]:
    start_ray(num_cpus=7)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import a test module
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def rows(num_rows: int) -> Loaded:
    generator = np.random.default_rng(0)
    directions_GD = generator.standard_normal((12, DIMS))
    x_ND = directions_GD[generator.integers(0, 12, num_rows)] + 0.5 * generator.standard_normal((num_rows, DIMS))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    high_N, low_N = generator.integers(0, 2**63, (2, num_rows), dtype=np.uint64)
    return x_ND.astype(np.float16), high_N, low_N


def blocks(num_rows: int, index_M: NDArray[np.intp] | None = None) -> list[Loaded]:
    """Some of the rows in three blocks, the last of which may be empty."""
    x_ND, high_N, low_N = rows(num_rows)
    index_M = np.arange(num_rows) if index_M is None else index_M
    return [(x_ND[part_M], high_N[part_M], low_N[part_M]) for part_M in np.split(index_M, [7, len(index_M)])]


def shuffled_loaders(num_rows: int, actors: int, seed: int) -> list[Loader]:
    """The rows in another order, dealt to actors in unequal parts."""
    generator = np.random.default_rng(seed)
    order_N = generator.permutation(num_rows)
    cuts = np.sort(generator.integers(0, num_rows, actors - 1))
    return [partial(blocks, num_rows, index_M) for index_M in np.split(order_N, cuts)]


def fit_in_one_place(
    num_rows: int, clusters: int, iterations: int, seed: int, sample_M: NDArray[np.intp] | None = None
) -> KMeansFit:
    """The same algorithm as a plain loop, over all rows or some."""
    x_ND, high_N, low_N = (array if sample_M is None else array[sample_M] for array in rows(num_rows))
    centroids_KD = unit_rows(x_ND[lowest_keys(initial_keys(high_N, low_N, seed), clusters)])
    history = []
    for iteration in range(iterations + 1):
        sums_KD, counts_K = partial_sums(x_ND, assign(x_ND, centroids_KD)[0], clusters)
        similarity_K = summed_similarity(sums_KD, centroids_KD)
        history.append(inertia(similarity_K, counts_K))
        if iteration < iterations:
            centroids_KD = repair_empty(update_centroids(sums_KD, counts_K, centroids_KD), counts_K)
    return KMeansFit(centroids_KD, history, iterations, counts_K, similarity_K)


def whole_fit(num_rows: int, settings: KMeansSettings, seed: int) -> KMeansFit:
    """A fit by one actor with one thread."""
    return fit([partial(blocks, num_rows)], settings, seed=seed, threads=1)


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
    ours = fit([partial(blocks, 500)], settings, seed=0, threads=1, progress=lambda *pair: seen.append(pair))
    assert 0 < ours.iterations < 200
    assert seen == list(enumerate(ours.inertia))
    x_ND, _, _ = rows(500)
    sums_KD, counts_K = partial_sums(x_ND, assign(x_ND, ours.centroids_KD)[0], 3)
    np.testing.assert_array_equal(update_centroids(sums_KD, counts_K, ours.centroids_KD), ours.centroids_KD)


def one_row_many_times(num_rows: int) -> list[Loaded]:
    x_ND = np.tile(np.eye(1, DIMS), (num_rows, 1)).astype(np.float16)
    return [(x_ND, np.zeros(num_rows, dtype=np.uint64), np.arange(num_rows, dtype=np.uint64))]


def test_identical_rows_and_as_many_clusters_as_rows() -> None:
    ours = fit([partial(one_row_many_times, 5)], KMeansSettings(clusters=5, iterations=30), seed=0, threads=1)
    assert ours.iterations < 30
    assert ours.counts_K.sum() == 5
    assert ours.inertia[-1] == pytest.approx(0, abs=1e-5)


def test_more_clusters_than_rows() -> None:
    with pytest.raises(InputError, match="at most the number of rows with an embedding, got 9 clusters for 8 rows"):
        fit([partial(blocks, 8)], KMeansSettings(clusters=9), seed=0, threads=1)


def no_table() -> list[Loaded]:
    raise InputError("part 3 must be readable, got nothing")


def test_a_loader_fails_as_itself() -> None:
    with pytest.raises(InputError, match="part 3 must be readable, got nothing"):
        fit([no_table], KMeansSettings(clusters=2), seed=0, threads=1)


def counted_rows(num_rows: int, folder: Path) -> list[Loaded]:
    (folder / f"{os.getpid()}").touch()
    return blocks(num_rows)


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


OPTIONS: list[tuple[int, dict[str, Any]]] = [
    (7, {"init": "kmeans++", "metric": "euclidean", "points_per_cluster": 40}),
    (3, {"init": "kmeans||", "search": "two_level"}),
]


@pytest.mark.parametrize(("actors", "options"), OPTIONS, ids=["plus-plus-euclidean-sampled", "parallel-two-level"])
def test_options_give_the_same_bytes_for_any_actors_and_order(actors: int, options: dict[str, Any]) -> None:
    settings = KMeansSettings(clusters=25, iterations=3, **options)
    expected = whole_fit(3000, settings, seed=3)
    assert expected.counts_K.sum() == 3000
    assert expected.rows == min(3000, 25 * (settings.points_per_cluster or 3000))
    assert expected.recall == (1.0 if settings.two_level else None)
    ours = fit(shuffled_loaders(3000, actors, seed=actors), settings, seed=3, threads=1)
    assert_same_bytes(ours, expected)
    assert (ours.rows, ours.recall) == (expected.rows, expected.recall)


def first_centroids_of(init: str, k: int, points: int | None = None) -> NDArray[np.float64]:
    settings = KMeansSettings(clusters=k, iterations=0, init=init, points_per_cluster=points)  # type: ignore[arg-type]
    return whole_fit(2000, settings, seed=5).centroids_KD


def test_kmeans_plus_plus_draws_from_the_lowest_keys() -> None:
    x_ND, high_N, low_N = rows(2000)
    sample_MD = x_ND[lowest_keys(initial_keys(high_N, low_N, 5), 16 * 20)]
    expected_KD = unit_rows(sample_MD[spread_out(sample_MD, 20, 5)])
    np.testing.assert_array_equal(first_centroids_of("kmeans++", 20), expected_KD)


def test_kmeans_parallel_in_one_place() -> None:
    x_ND, high_N, low_N = rows(2000)
    key_N3 = initial_keys(high_N, low_N, 5)
    candidates = list(lowest_keys(key_N3, 20))
    closest = Oversampling(measure_rows(x_ND))
    closest.add(x_ND[candidates])
    for number in range(ROUNDS):
        drawn_M = closest.draw(int(closest.weights().sum()), 10, round_hash(high_N, low_N, 5, number))
        drawn_M = drawn_M[lowest_keys(key_N3[drawn_M], len(drawn_M))]
        closest.add(x_ND[drawn_M])
        candidates += drawn_M.tolist()
    order_C = lowest_keys(key_N3[candidates], len(candidates))
    x_CD = x_ND[candidates][order_C]
    expected_KD = unit_rows(x_CD[spread_out(x_CD, 20, 5, closest.counts()[order_C])])
    random_KD = unit_rows(x_ND[candidates[:20]])
    assert assign(x_ND, expected_KD)[1].mean() > assign(x_ND, random_KD)[1].mean()
    np.testing.assert_array_equal(first_centroids_of("kmeans||", 20), expected_KD)


def test_a_sample_is_the_rows_with_the_lowest_keys() -> None:
    ours = whole_fit(2000, KMeansSettings(clusters=8, iterations=3, points_per_cluster=30), seed=5)
    x_ND, high_N, low_N = rows(2000)
    alone = fit_in_one_place(2000, 8, 3, 5, lowest_keys(initial_keys(high_N, low_N, 5), 240))
    np.testing.assert_array_equal(ours.centroids_KD, alone.centroids_KD)
    assert ours.inertia == alone.inertia
    sums_KD, counts_K = partial_sums(x_ND, assign(x_ND, ours.centroids_KD)[0], 8)
    np.testing.assert_array_equal(ours.counts_K, counts_K)
    np.testing.assert_array_equal(ours.similarity_K, summed_similarity(sums_KD, ours.centroids_KD))


def test_a_sample_larger_than_the_pool_is_the_pool() -> None:
    settings = KMeansSettings(clusters=10, iterations=4, points_per_cluster=60)
    assert_same_bytes(whole_fit(600, settings, seed=3), fit_in_one_place(600, 10, 4, seed=3))


class Killed(Exception):
    """Stands for a driver that is killed."""


def test_a_killed_driver_goes_on_after_its_last_iteration(tmp_path: Path) -> None:
    settings = KMeansSettings(clusters=12, iterations=6)
    expected = whole_fit(900, settings, seed=3)
    saved = Iterations(Store(str(tmp_path)), "fit/0")
    seen: list[int] = []

    def kill_at_3(updates: int, _: float) -> None:
        seen.append(updates)
        if updates == 3:
            raise Killed

    with pytest.raises(Killed):
        fit([partial(blocks, 900)], settings, seed=3, threads=1, progress=kill_at_3, saved=saved)
    assert [path.name for path in (tmp_path / "fit/0").iterdir()] == ["iteration-0003.npz"]
    again: list[int] = []
    ours = fit(
        shuffled_loaders(900, 2, seed=2),
        settings,
        seed=3,
        threads=1,
        progress=lambda updates, _: again.append(updates),
        saved=saved,
    )
    assert (seen, again) == ([0, 1, 2, 3], list(range(3, expected.iterations + 1)))
    assert_same_bytes(ours, expected)


def test_a_state_that_is_listed_but_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "find", lambda *_: {"fit/0/iteration-0003.npz": 9})
    assert Iterations(Store(str(tmp_path)), "fit/0").load() is None
