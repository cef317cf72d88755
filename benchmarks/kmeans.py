"""Iterations per second of our k-means over those of faiss and scikit-learn: same data, first centroids and cores.

    python -m benchmarks.kmeans [--rows 500000 --dim 512 --clusters 1000 --iterations 5]
                                [--threads 4 --actors 2 --repeats 3 --growth]

Ours runs three times: the operators in this process, spherical as faiss does it and Euclidean as scikit-learn does it,
and through Ray actors that share the threads. `product` is the bare bfloat16 product of rows and centroids, without
which no iteration goes. Runs are interleaved, and medians printed. Faiss trains on every row (its default is a sample
of 256 rows a cluster), without redos. `--growth` prints instead what an eighth, a quarter, half and all of the rows
take.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import faiss
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from operators.exact import round_to_grid
from operators.kmeans import (
    Metric,
    Part,
    inertia,
    initial_keys,
    lowest_keys,
    repair_empty,
    summed_similarity,
    unit_rows,
    update_centroids,
)
from operators.screen import BLOCK_COLUMNS, BLOCK_ROWS, as_tensor, one_torch_thread
from pipeline.clustering import KMeansSettings
from pipeline.kmeans import fit
from pipeline.kmeans_keys import Loaded

Outcome = tuple[float, float]
"""Seconds per iteration, and the inertia that the iterations led to: the mean of 1 - cos, or of half the distance^2."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 500_000), ("dim", 512), ("clusters", 1000), ("iterations", 5), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all actors together")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    if options.growth:
        growth(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    ray.init(num_cpus=max(options.threads, options.actors), include_dashboard=False, log_to_driver=False)
    for data, make in (("mixture", mixture), ("random", random_rows)):
        x_ND = make(options.rows, options.dim)
        first_KD = first_centroids(x_ND, options.clusters)
        steps, threads = options.iterations, options.threads
        runners: dict[str, Callable[[], Outcome]] = {
            "faiss": partial(run_faiss, x_ND, first_KD, steps),
            "operators": partial(run_operators, x_ND, first_KD, steps, threads),
            "actors": partial(run_actors, x_ND, options),
            "product": partial(run_product, x_ND, first_KD, threads),
            "scikit-learn": partial(run_sklearn, x_ND, first_KD, steps, threads),
            "euclidean": partial(run_operators, x_ND, first_KD, steps, threads, "euclidean"),
        }
        report(data, runners, options.repeats)


def first_centroids(x_ND: NDArray[np.float16], clusters: int) -> NDArray[np.float64]:
    return unit_rows(x_ND[lowest_keys(initial_keys(*uids(0, len(x_ND)), 0), clusters)])


def growth(options: argparse.Namespace) -> None:
    """Seconds of an iteration as the rows double three times; the first of each is not counted."""
    before = None
    for rows in (options.rows // 8, options.rows // 4, options.rows // 2, options.rows):
        x_ND = mixture(rows, options.dim)
        first_KD = first_centroids(x_ND, options.clusters)
        seconds = statistics.median(
            run_operators(x_ND, first_KD, options.iterations, options.threads)[0] for _ in range(options.repeats)
        )
        ratio = f", {seconds / before:.2f} x the time at half the rows" if before else ""
        print(f"{rows:9,} rows: {1000 * seconds:8.1f} ms an iteration{ratio}", flush=True)
        before = seconds


def report(data: str, runners: dict[str, Callable[[], Outcome]], repeats: int) -> None:
    outcomes: dict[str, list[Outcome]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, run in runners.items():
            outcomes[name].append(run())
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in outcomes.items()}
    for name, seconds in medians.items():
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(outcomes["faiss"], outcomes[name], strict=True)]
        reached = outcomes[name][-1][1]
        theirs = outcomes["scikit-learn" if name in ("scikit-learn", "euclidean") else "faiss"][-1][1]
        print(
            f"{data:8} {name:12} {1 / seconds:6.2f} iterations/s, {medians['faiss'] / seconds:5.2f} x faiss "
            f"(paired {min(ratios):.2f} to {max(ratios):.2f}), {medians['scikit-learn'] / seconds:5.2f} x scikit-learn"
            + ("" if np.isnan(reached) else f", inertia {reached:.6f} ({100 * (reached / theirs - 1):+.3f} %)"),
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


def run_sklearn(x_ND: NDArray[np.float16], first_KD: NDArray[np.float64], iterations: int, threads: int) -> Outcome:
    single_ND = x_ND.astype(np.float32)
    model = KMeans(
        len(first_KD), init=first_KD.astype(np.float32), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
    )
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        started = time.perf_counter()
        model.fit(single_ND)
        seconds = (time.perf_counter() - started) / iterations
    return seconds, exact_inertia(x_ND, round_to_grid(model.cluster_centers_.astype(np.float64)), "euclidean")


def run_operators(
    x_ND: NDArray[np.float16],
    centroids_KD: NDArray[np.float64],
    iterations: int,
    threads: int,
    metric: Metric = "spherical",
) -> Outcome:
    started = time.perf_counter()
    part = Part(x_ND, metric, threads=threads)
    for _ in range(iterations):
        sums_KD, counts_K = part.step(centroids_KD)
        updated_KD = update_centroids(sums_KD, counts_K, centroids_KD, metric)
        centroids_KD = repair_empty(updated_KD, counts_K, metric)
    seconds = (time.perf_counter() - started) / iterations
    return seconds, exact_inertia(x_ND, centroids_KD, metric)


def run_product(x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64], threads: int) -> Outcome:
    """Tiles of the shape that the screen uses, into one buffer for each thread; nothing is done with the scores."""
    rows_ND, columns_KD = as_tensor(x_ND, "cpu").bfloat16(), as_tensor(centroids_KD, "cpu").bfloat16()

    def multiply(starts: range) -> None:
        score_BC = torch.empty(BLOCK_ROWS, BLOCK_COLUMNS, dtype=torch.bfloat16)
        for start in starts:
            block_BD = rows_ND[start : start + BLOCK_ROWS]
            for block_CD in torch.split(columns_KD, BLOCK_COLUMNS):
                torch.mm(block_BD, block_CD.T, out=score_BC[: len(block_BD), : len(block_CD)])

    with one_torch_thread(), ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(multiply, [range(i * BLOCK_ROWS, len(x_ND), threads * BLOCK_ROWS) for i in range(threads)]))
        return time.perf_counter() - started, float("nan")


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


def load(stored: list[ray.ObjectRef], first: int, last: int) -> list[Loaded]:
    return [(ray.get(stored[0])[first:last], *uids(first, last))]


def uids(first: int, last: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return np.zeros(last - first, dtype=np.uint64), np.arange(first, last, dtype=np.uint64)


def exact_inertia(x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64], metric: Metric = "spherical") -> float:
    sums_KD, counts_K = Part(x_ND, metric, threads=len(os.sched_getaffinity(0))).step(centroids_KD)
    return inertia(summed_similarity(sums_KD, centroids_KD, counts_K, metric), counts_K)


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
