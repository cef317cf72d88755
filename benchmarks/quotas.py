"""Quotas of density-based pruning: the closed form in integers against general ways to solve the same programme.

    python -m benchmarks.quotas [--clusters 50000] [--repeats 7]

Baselines, solved in the same run on the same problem, their answers rounded to the nearest integer: OSQP, a solver of
quadratic programmes, as it comes and with a tight tolerance; bisection (Brent) on the level; and scipy's SLSQP, at a
size that it can take. Runs are interleaved. Prints medians, ratios, by how much each answer misses the number to keep,
and how many clusters get another quota than they should; then what a half, a quarter and an eighth of the clusters
take. OSQP's time includes its setup.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import osqp
from numpy.typing import NDArray
from scipy import sparse
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


def solve_by_osqp(probabilities_K: Floats, sizes_K: Ints, target: int, *, tolerance: float | None = None) -> Ints:
    """With OSQP's own settings, or with a tolerance and as many iterations as that takes."""
    wanted_K = probabilities_K * target
    ones_K = np.ones(sizes_K.size)
    solver = osqp.OSQP()
    accuracy = {} if tolerance is None else {"eps_abs": tolerance, "eps_rel": tolerance, "max_iter": 100_000}
    solver.setup(
        P=sparse.diags(ones_K, format="csc"),
        q=-wanted_K,
        A=sparse.vstack([ones_K, sparse.eye(sizes_K.size)], format="csc"),
        l=np.concatenate([[target], np.minimum(sizes_K, 1)]).astype(np.float64),
        u=np.concatenate([[target], sizes_K]).astype(np.float64),
        verbose=False,
        **accuracy,
    )
    quotas_K: Ints = np.rint(solver.solve().x).astype(np.int64)
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


def measure(solvers: dict[str, Solver], problem: tuple[Floats, Ints, int], repeats: int) -> None:
    """Prints a line for each solver; the first one is what the others are compared with."""
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    answers: dict[str, Ints] = {}
    with threadpool_limits(1):  # on a busy machine the waiting threads of BLAS slow SLSQP down a hundredfold
        for _ in range(repeats):
            for name, solve in solvers.items():
                start = time.perf_counter()
                answers[name] = solve(*problem)
                seconds[name].append(time.perf_counter() - start)
    _, sizes_K, target = problem
    first = next(iter(solvers))
    for name, quotas_K in answers.items():
        middle, ratio = median(seconds[name]), median(seconds[name]) / median(seconds[first])
        miss, wrong = int(quotas_K.sum()) - target, int(np.count_nonzero(quotas_K != answers[first]))
        print(f"{sizes_K.size:>8}  {name:<24}{middle * 1e3:>10.2f}  {ratio:>17.2f}  {miss:>+12d}  {wrong:>12d}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    columns = ("median ms", "times closed form", "sum - target", "wrong quotas")
    print(f"{'clusters':>8}  {'solver':<24}{columns[0]:>10}  {columns[1]:>17}  {columns[2]:>12}  {columns[3]:>12}")
    large: dict[str, Solver] = {
        "closed form": solve_quotas,
        "OSQP": solve_by_osqp,
        "OSQP, tolerance 1e-9": partial(solve_by_osqp, tolerance=1e-9),
        "bisection": solve_by_bisection,
    }
    measure(large, make_problem(arguments.clusters), arguments.repeats)
    measure({"closed form": solve_quotas, "SLSQP": solve_by_slsqp}, make_problem(SLSQP_CLUSTERS), arguments.repeats)
    for part in (2, 4, 8):
        measure({"closed form": solve_quotas}, make_problem(arguments.clusters // part), arguments.repeats)


if __name__ == "__main__":
    main()
