"""Where k-means begins: D^2 sampling, on one worker (k-means++) or over all of them (k-means||).

A row is drawn with a chance in proportion to its squared distance to the nearest row drawn before, so the draws spread
out. Here the draws are the same for any number of workers and threads, on any machine: distances are integers, so their
sums are exact in any order, and what decides for a row is a hash of its uid.

Distances are Euclidean between stored rows, for both metrics: rows have unit length but for the rounding to float16,
where half the squared distance is 1 - cos.

Legend: N rows of one worker, M candidates, K clusters, D dimensions, L trials.

Notes:
    Arthur, Vassilvitskii: k-means++, SODA 2007. Bahmani et al.: Scalable K-Means++, VLDB 2012, section 3.3.
"""

import math

import numpy as np
from numpy.typing import NDArray

from operators.certified import nearest, similarities
from operators.hashing import generator, keyed_hash
from operators.kmeans import offsets
from operators.screen import Rows, prepare_columns

_WEIGHT_BITS = 30
"""Half squared distances of stored rows, up to 2, as integers: sums over 2^28 rows stay below 2^59."""

_COARSE_BITS = 11
"""`spread_out` rounds rows to multiples of 2^-11: their dot products are multiples of 2^-22 below 2, and float32 holds
those exactly, whatever the order of summation. It moves cosines by up to 0.001 (measured, D = 512)."""


def spread_out(
    x_MD: NDArray[np.float16], k: int, seed: int, weight_M: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Greedy k-means++: draws k of the rows; of 2 + ln k trials for each, the one that leaves the least distance stays.

    Takes about k x M x D multiplications for each trial, so it is for samples.

    Args:
        x_MD: float16 stored rows, M >= k, in an order that does not depend on workers.
        k: how many to draw.
        seed: of the draws.
        weight_M: int64, how many rows each stands for, 2^28 in all; by default one.

    Returns:
        chosen_K: int64 positions, all different, in the order drawn. Where no distance is left (fewer different rows
        than k), the first positions that were not drawn yet.
    """
    random = generator(seed, "kmeans++")
    coarse_MD = np.ldexp(np.rint(np.ldexp(x_MD.astype(np.float32), _COARSE_BITS)), -_COARSE_BITS)
    norm_M = _integers(np.einsum("md,md->m", coarse_MD, coarse_MD))
    weight_M = np.ones(len(x_MD), dtype=np.int64) if weight_M is None else weight_M
    trials = 2 + int(math.log(k))

    def distances(position_L: NDArray[np.int64]) -> NDArray[np.int64]:
        """(L, M) squared distances to some of the rows."""
        return norm_M + norm_M[position_L, None] - 2 * _integers(coarse_MD[position_L] @ coarse_MD.T)

    chosen_K = np.empty(k, dtype=np.int64)
    chosen_K[0] = _draw(np.cumsum(weight_M), 1, random)[0]
    nearest_M = distances(chosen_K[:1])[0]
    for i in range(1, k):
        cumulative_M = np.cumsum(nearest_M * weight_M)
        if cumulative_M[-1] == 0:
            chosen_K[i:] = np.setdiff1d(np.arange(len(x_MD)), chosen_K[:i])[: k - i]
            break
        trial_L = _draw(cumulative_M, trials, random)
        after_LM = np.minimum(distances(trial_L), nearest_M)
        best = (after_LM @ weight_M).argmin()
        chosen_K[i], nearest_M = trial_L[best], after_LM[best]
    return chosen_K


def _draw(cumulative_M: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Positions drawn in proportion to integer weights, given their running sum."""
    return np.searchsorted(cumulative_M, random.integers(cumulative_M[-1], size=count), side="right")


def _integers(products: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.ldexp(products, 2 * _COARSE_BITS).astype(np.int64)


class Oversampling:
    """k-means||, one worker's share: how far each of its rows is from the candidates that all workers have drawn.

    What it holds is a function of the rows and the candidates alone, so a worker that was lost adds them again.
    """

    def __init__(self, rows: Rows, *, threads: int = 1) -> None:
        """Adds 12 bytes a row."""
        self._rows, self._threads = rows, threads
        self._similarity_N = np.full(len(rows.x_ND), -np.inf)
        self._candidate_N = np.zeros(len(rows.x_ND), dtype=np.int32)
        self._slack_N = (1.0 - _squared_norms(rows)) / 2
        self._num_candidates = 0
        self.rounds = 0

    def add(self, x_MD: NDArray[np.float16]) -> None:
        """Adds the candidates of one more round: stored rows, M >= 0."""
        self.rounds += 1
        if not len(x_MD):
            return
        centroids_MD = x_MD.astype(np.float64)
        columns = prepare_columns(centroids_MD, offsets(centroids_MD, "euclidean"), device=str(self._rows.x_ND.device))
        candidate_N = nearest(self._rows, columns, threads=self._threads)
        similarity_N = similarities(self._rows, columns, candidate_N, threads=self._threads)
        closer_N = similarity_N > self._similarity_N
        self._similarity_N[closer_N] = similarity_N[closer_N]
        self._candidate_N[closer_N] = candidate_N[closer_N] + self._num_candidates
        self._num_candidates += len(x_MD)

    def weights(self) -> NDArray[np.int64]:
        """D^2 of each row, in units of 2^-29: |x - c|^2 / 2 = 1 - s(x, c) - (1 - |x|^2) / 2, exact and then cut."""
        return np.ldexp(1.0 - self._similarity_N - self._slack_N, _WEIGHT_BITS).astype(np.int64)

    def draw(self, total: int, expected: int, hash_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Positions of the rows drawn in one round, each on its own, with the chance `expected` x weight / `total`.

        Args:
            total: the weights of all workers' rows.
            expected: how many rows all workers together draw on average.
            hash_N: uniform, another for each round (`operators.hashing`).
        """
        chance_N = expected * self.weights().astype(np.float64) / max(total, 1)
        return np.flatnonzero((hash_N >> np.uint64(11)) * 2.0**-53 < chance_N)

    def counts(self) -> NDArray[np.int64]:
        """How many rows are nearest to each candidate, the lowest one among equals."""
        return np.bincount(self._candidate_N, minlength=self._num_candidates)


def round_hash(high_N: NDArray[np.uint64], low_N: NDArray[np.uint64], seed: int, number: int) -> NDArray[np.uint64]:
    """What decides about each row in one round of k-means||."""
    return keyed_hash(high_N, low_N, seed, f"kmeans||.{number}")


def _squared_norms(rows: Rows) -> NDArray[np.float64]:
    """|x|^2 of stored rows, exact (multiples of 2^-48). In blocks, as float64 takes four times the room."""
    norm_N = np.empty(len(rows.x_ND))
    for start in range(0, len(norm_N), 4096):
        exact_BD = rows.x_ND[start : start + 4096].float().double()
        norm_N[start : start + 4096] = (exact_BD * exact_BD).sum(dim=1).cpu().numpy()
    return norm_N
