"""Semantic duplicates of one cluster: tiles that are settled as they come, against the full matrix in torch.

    python -m benchmarks.duplicates [--rows 20000] [--dims 512] [--threads 4] [--runs 5]

The baseline is what the method's description amounts to: normalise, multiply all rows with all rows in float32, keep
the upper triangle, take the maximum of each column and compare it with 1 - epsilon. Each side runs in a process of its
own, whose peak memory above what it had before the work is told too. Rows: unit vectors around one direction, a third
of them noisy copies of others. Ours gives more in the same time: who stays, representatives, groups, six epsilons.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from operators.duplicates import Groups, Rule, open_block, removed, settle
from operators.embeddings import to_unit_float16
from operators.near_pairs import screen, thresholds

EPSILONS = np.array([0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
CHOSEN = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    cases = {"full matrix": full_matrix, "tiles, one epsilon": tiles_of_one, "tiles, six epsilons": tiles_of_six}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    peaks: dict[str, list[float]] = {name: [] for name in cases}
    counts = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(options.runs):
            for name, case in cases.items():
                taken, peak, counts[name] = pool.apply(measure, (case, options.rows, options.dims, options.threads))
                seconds[name].append(taken)
                peaks[name].append(peak)
    print(f"{options.rows:,} rows of {options.dims}, {options.threads} threads, medians of {options.runs} runs")
    base = statistics.median(seconds["full matrix"]), statistics.median(peaks["full matrix"])
    for name in cases:
        taken, peak = statistics.median(seconds[name]), statistics.median(peaks[name])
        print(
            f"{name:22} {taken:7.3f} s  {base[0] / taken:5.2f}x   peak {peak:7.1f} MB  {peak / base[1]:6.3f}"
            f"   {counts[name]:,} go"
        )
    print("growth of tiles, six epsilons, with the rows:")
    before = 0.0
    for rows in (options.rows // 8 << i for i in range(4)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = (tiles_of_six, rows, options.dims, options.threads)
            taken = statistics.median(pool.apply(measure, arguments)[0] for _ in range(options.runs))
        print(f"{rows:10,} {taken:7.3f} s" + (f"  {taken / before:.2f}x" if before else ""))
        before = taken


def measure(case: Callable[..., int], rows: int, dims: int, threads: int) -> tuple[float, float, int]:
    """Seconds, megabytes above those before, and how many rows go."""
    torch.set_num_threads(threads)
    x_ND = make_rows(rows, dims)
    case(x_ND[:64], threads)  # loads what torch loads late
    before = _peak_reset()
    start = time.perf_counter()
    count = case(x_ND, threads)
    return time.perf_counter() - start, (_peak() - before) / 1e6, count


def make_rows(rows: int, dims: int) -> np.ndarray:
    """The generated cluster, float16."""
    rng = np.random.default_rng(0)
    x_ND = rng.standard_normal((rows, dims), dtype=np.float32)
    copies = rng.choice(rows, rows // 3, replace=False)
    x_ND[copies] = x_ND[rng.integers(0, rows, rows // 3)]
    x_ND[copies] += (
        0.3 * rng.random((rows // 3, 1), dtype=np.float32) * rng.standard_normal((rows // 3, dims), dtype=np.float32)
    )
    x_ND += rng.standard_normal(dims, dtype=np.float32)
    return to_unit_float16(x_ND)[0]


def full_matrix(x_ND: np.ndarray, threads: int) -> int:
    """The baseline."""
    x = torch.from_numpy(x_ND).float()
    similarity_NN = torch.triu(x @ x.T, diagonal=1)
    return int((similarity_NN.max(dim=0).values > 1 - EPSILONS[CHOSEN]).sum())


def tiles_of_one(x_ND: np.ndarray, threads: int) -> int:
    """Ours, as `mode: reference`, which is what the baseline computes."""
    return _tiles(x_ND, Rule("reference", thresholds(EPSILONS[CHOSEN : CHOSEN + 1]), 0, threads))


def tiles_of_six(x_ND: np.ndarray, threads: int) -> int:
    """Ours, as the step runs it: `mode: cover`, groups, and a curve."""
    return _tiles(x_ND, Rule("cover", thresholds(EPSILONS), CHOSEN, threads))


def _tiles(x_ND: np.ndarray, rule: Rule) -> int:
    key_N3 = np.zeros((len(x_ND), 3), np.uint64)
    key_N3[:, 2] = np.arange(len(x_ND))
    block = open_block(screen(x_ND), key_N3, len(rule.threshold_E))
    return int(removed(settle(block, None, rule, Groups.singles(len(x_ND))))[rule.chosen])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _peak_reset() -> int:
    """Bytes held now, from which the peak counts anew where the system allows that."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return _peak()
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) * 1024


if __name__ == "__main__":
    main()
