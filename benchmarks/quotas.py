"""Quotas of density-based pruning: the closed form in integers against general ways to solve the same programme.

    python -m benchmarks.quotas [--clusters 50000] [--repeats 7]

Baselines, solved in the same run on the same problem: bisection (Brent) on the level, then rounding to the nearest
integer, at the full size; and scipy's SLSQP, then rounding, at a size that it can take. Prints medians, ratios, and by
how much each answer misses the number of samples to keep.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from operators.quotas import solve_quotas

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Solver = Callable[[Floats, Ints, int], Ints]

SLSQP_CLUSTERS = 300


def make_problem(num_clusters: int, seed: int = 0) -> tuple[Floats, Ints, int]:
    """Sizes from a heavy tail, probabilities from a skewed softmax, 40 % to keep: many clusters are at a bound."""
    rng = np.random.default_rng(seed)
    sizes_K = np.rint(np.exp(rng.normal(6.0, 1.5, num_clusters))).astype(np.int64) + 1
    weights_K = np.exp(rng.uniform(0.0, 0.25, num_clusters) / 0.1)
    return weights_K / weights_K.sum(), sizes_K, int(sizes_K.sum()) * 2 // 5


def solve_by_bisection(probabilities_K: Floats, sizes_K: Ints, target: int) -> Ints:
    wanted_K = probabilities_K * target
    lower_K = np.minimum(sizes_K, 1)

    def excess(level: float) -> float:
        return float(np.clip(wanted_K + level, lower_K, sizes_K).sum()) - target

    level = brentq(excess, -float(target), float(sizes_K.max()))
    quotas_K: Ints = np.rint(np.clip(wanted_K + level, lower_K, sizes_K)).astype(np.int64)
    return quotas_K


def solve_by_slsqp(probabilities_K: Floats, sizes_K: Ints, target: int) -> Ints:
    wanted_K = probabilities_K * target
    ones_K = np.ones(sizes_K.size)
    answer = minimize(
        lambda x_K: float(((x_K - wanted_K) ** 2).sum()),
        x0=sizes_K * (target / sizes_K.sum()),
        jac=lambda x_K: 2 * (x_K - wanted_K),
        bounds=list(zip(np.minimum(sizes_K, 1), sizes_K, strict=True)),
        constraints={"type": "eq", "fun": lambda x_K: x_K.sum() - target, "jac": lambda x_K: ones_K},
        method="SLSQP",
        options={"maxiter": 1000},
    )
    quotas_K: Ints = np.rint(answer.x).astype(np.int64)
    return quotas_K


def measure(solve: Solver, problem: tuple[Floats, Ints, int], repeats: int) -> tuple[float, int]:
    """Median seconds, and how far the sum of the quotas is from the target."""
    seconds = []
    with threadpool_limits(1):  # on a busy machine the waiting threads of BLAS slow SLSQP down a hundredfold
        for _ in range(repeats):
            start = time.perf_counter()
            quotas_K = solve(*problem)
            seconds.append(time.perf_counter() - start)
    return median(seconds), int(quotas_K.sum()) - problem[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    print(f"{'clusters':>8}  {'solver':<18}{'median ms':>10}  {'times closed form':>17}  {'sum - target':>12}")
    for name, baseline, num_clusters in [
        ("bisection + rint", solve_by_bisection, arguments.clusters),
        ("SLSQP + rint", solve_by_slsqp, SLSQP_CLUSTERS),
    ]:
        problem = make_problem(num_clusters)
        closed_seconds, closed_miss = measure(solve_quotas, problem, arguments.repeats)
        baseline_seconds, baseline_miss = measure(baseline, problem, arguments.repeats)
        print_row(num_clusters, "closed form", closed_seconds, 1.0, closed_miss)
        print_row(num_clusters, name, baseline_seconds, baseline_seconds / closed_seconds, baseline_miss)


def print_row(num_clusters: int, name: str, seconds: float, ratio: float, miss: int) -> None:
    print(f"{num_clusters:>8}  {name:<18}{seconds * 1e3:>10.2f}  {ratio:>17.2f}  {miss:>+12d}")


if __name__ == "__main__":
    main()
