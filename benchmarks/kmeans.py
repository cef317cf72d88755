"""Iterations per second of our k-means over those of faiss, on the same data, first centroids, iterations and cores.

    python -m benchmarks.kmeans [--rows 500000 --dim 512 --clusters 1000 --iterations 5]
                                [--threads 4 --actors 2 --repeats 3]

Ours runs twice: the operators in this process, and through Ray actors that share the threads. Runs are interleaved, and
medians printed. Faiss trains on every row (its default is a sample of 256 rows a cluster), spherical, without redos.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import faiss
import numpy as np
import ray
from numpy.typing import NDArray

from operators.kmeans import (
    Part,
    inertia,
    initial_keys,
    lowest_keys,
    repair_empty,
    summed_similarity,
    unit_rows,
    update_centroids,
)
from pipeline.clustering import KMeansSettings
from pipeline.kmeans import Loaded, fit

Outcome = tuple[float, float]
"""Seconds per iteration, and the inertia that the iterations led to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 500_000), ("dim", 512), ("clusters", 1000), ("iterations", 5), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all actors together")
    parser.add_argument("--actors", type=int, default=2)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    ray.init(num_cpus=max(options.threads, options.actors), include_dashboard=False, log_to_driver=False)
    for data, make in (("mixture", mixture), ("random", random_rows)):
        x_ND = make(options.rows, options.dim)
        first_KD = unit_rows(x_ND[lowest_keys(initial_keys(*uids(0, len(x_ND)), 0), options.clusters)])
        runners: dict[str, Callable[[], Outcome]] = {
            "faiss": partial(run_faiss, x_ND, first_KD, options.iterations),
            "operators": partial(run_operators, x_ND, first_KD, options.iterations, options.threads),
            "actors": partial(run_actors, x_ND, options),
        }
        report(data, runners, options.repeats)


def report(data: str, runners: dict[str, Callable[[], Outcome]], repeats: int) -> None:
    outcomes: dict[str, list[Outcome]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, run in runners.items():
            outcomes[name].append(run())
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in outcomes.items()}
    for name, seconds in medians.items():
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(outcomes["faiss"], outcomes[name], strict=True)]
        print(
            f"{data:8} {name:10} {1 / seconds:6.2f} iterations/s, {medians['faiss'] / seconds:5.2f} x faiss "
            f"(paired {min(ratios):.2f} to {max(ratios):.2f}), inertia {outcomes[name][-1][1]:.6f}",
            flush=True,
        )


def run_faiss(x_ND: NDArray[np.float16], first_KD: NDArray[np.float64], iterations: int) -> Outcome:
    single_ND = x_ND.astype(np.float32)
    settings = {"niter": iterations, "spherical": True, "max_points_per_centroid": len(x_ND)}
    model = faiss.Kmeans(x_ND.shape[1], len(first_KD), **settings)
    started = time.perf_counter()
    model.train(single_ND, init_centroids=first_KD.astype(np.float32))
    seconds = (time.perf_counter() - started) / iterations
    return seconds, exact_inertia(x_ND, unit_rows(np.asarray(model.centroids)))


def run_operators(
    x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64], iterations: int, threads: int
) -> Outcome:
    started = time.perf_counter()
    part = Part(x_ND, threads=threads)
    for _ in range(iterations):
        sums_KD, counts_K = part.step(centroids_KD)
        centroids_KD = repair_empty(update_centroids(sums_KD, counts_K, centroids_KD), counts_K)
    seconds = (time.perf_counter() - started) / iterations
    return seconds, exact_inertia(x_ND, centroids_KD)


def run_actors(x_ND: NDArray[np.float16], options: argparse.Namespace) -> Outcome:
    """From the end of the first assignment to the end of the last; starting actors and loading are not counted."""
    times: list[float] = []
    stored = ray.put(x_ND)
    edges = np.linspace(0, len(x_ND), options.actors + 1).astype(int).tolist()
    loaders = [partial(load, [stored], *edge) for edge in pairwise(edges)]
    settings = KMeansSettings(clusters=options.clusters, iterations=options.iterations)
    threads = max(1, options.threads // options.actors)
    result = fit(loaders, settings, seed=0, threads=threads, progress=lambda *_: times.append(time.perf_counter()))
    return (times[-1] - times[0]) / (len(times) - 1), result.inertia[-1]


def load(stored: list[ray.ObjectRef], first: int, last: int) -> Loaded:
    return (ray.get(stored[0])[first:last].copy(), *uids(first, last))


def uids(first: int, last: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return np.zeros(last - first, dtype=np.uint64), np.arange(first, last, dtype=np.uint64)


def exact_inertia(x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64]) -> float:
    sums_KD, counts_K = Part(x_ND, threads=len(os.sched_getaffinity(0))).step(centroids_KD)
    return inertia(summed_similarity(sums_KD, centroids_KD), counts_K)


def random_rows(num_rows: int, dims: int) -> NDArray[np.float16]:
    """Unit rows without any structure: the hardest to screen, as the two best centroids are always close."""
    generator = np.random.default_rng(0)
    return scaled(generator.standard_normal((num_rows, dims), dtype=np.float32))


def mixture(num_rows: int, dims: int) -> NDArray[np.float16]:
    """What embeddings look like: a cone around one direction, many unequal groups, and as much noise as signal."""
    generator = np.random.default_rng(0)
    groups_GD = scaled(generator.standard_normal((4000, dims), dtype=np.float32))
    group_N = (len(groups_GD) * generator.random(num_rows) ** 1.5).astype(int)
    noise_ND = scaled(generator.standard_normal((num_rows, dims), dtype=np.float32))
    return scaled(0.7 * groups_GD[group_N].astype(np.float32) + 0.7 * noise_ND + 0.7 * groups_GD[0])


def scaled(vectors_ND: NDArray[np.floating]) -> NDArray[np.float16]:
    length_N = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float16] = (vectors_ND / length_N).astype(np.float16)
    return unit_ND


if __name__ == "__main__":
    main()
