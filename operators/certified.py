"""Certified arithmetic: fast products decide nothing, they only tell which few products must be computed exactly.

Legend: N rows, B rows of one block, K columns (centroids), C columns of one block, D dimensions, P candidate pairs.

Stored embeddings are float16: multiples of 2^-24. Centroids are float64 on the 2^-28 grid. Their products are multiples
of 2^-52, and by Cauchy-Schwarz no sum over any subset of the D terms exceeds |x| |c| < 2, so a float64 dot product
never rounds, whatever the order of summation, the use of fused multiply-adds, the thread count or the device. That dot
product is the only thing that decides. Computing all of them would be slow, so a bfloat16 product screens first.

**The bound.** Let x be a row and c a column; x' and c' their bfloat16 roundings. Then

    <x, c> - <x', c'>  =  <x - x', c> + <x', c - c'>                              (an identity)
    |<x, c> - <x', c'>|  <=  |x - x'| |c| + |x'| |c - c'|                         (Cauchy-Schwarz)

where both residual norms are measured, not assumed. Products of two bfloat16 numbers are exact in float32 (none
underflows: the smallest is 2^-52); adding D of them, in any order, loses at most D 2^-22 |x'| |c'| (four times the unit
roundoff, which covers accumulators that truncate). Call the sum of the three terms e(x), with the largest |c|, |c - c'|
and |c'| over all columns. So the float32 score p(x, c) lies within e(x) of <x, c>. Let column b have the largest score
and column a be the true winner. Then p(x, a) >= <x, a> - e >= <x, b> - e >= p(x, b) - 2 e. Where the product comes back
in bfloat16, the stored score s is the rounding of p, p(x, b) >= s(x, b) - 2^-8 |s(x, b)|, and as rounding is monotone

    s(x, a)  >=  round(s(x, b) - 2^-8 |s(x, b)| - 2 e(x)).

Columns below that threshold cannot win. Where one column is left, it is the answer; where several are, their exact dot
products decide, and the lowest column id among equals.

**Centring.** Subtracting one vector m from every column changes no comparison, as all scores of a row move by <x, m>.
With m the mean column (on the grid, so that c - m is exact) the columns are shorter, and with them both the bound and
the rounding of the score: encoders put all images into a narrow cone, where this matters.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRID_BITS = 28
"""Centroids are multiples of 2^-28: with rows that are multiples of 2^-24, products fit the 53 bits of a float64."""

_ROWS, _COLUMNS = 2048, 1024
"""Shape of a tile of scores (4 MB in bfloat16). Measured: smaller tiles wait for the interpreter, larger for memory."""

_GROUP = 8
"""Columns that share one maximum in the first pass over a tile, so that the second pass sees an eighth of it."""

_MOST_PAIRS = 4_000_000
"""Candidate pairs of a block beyond which the block is halved: where nearly all columns are alike, nearly all pairs are
candidates, and memory stays bounded."""

_BFLOAT16_ROUNDOFF = 2.0**-8
_ACCUMULATION = 2.0**-22
_SLACK = 1 + 2.0**-10  # more than the rounding errors made while computing the bound itself

with warnings.catch_warnings():  # torch warns once in a process that CSR tensors are in beta: it may as well be here
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


def round_to_grid(values: NDArray[np.float64], bits: int = GRID_BITS) -> NDArray[np.float64]:
    """Rounds to the nearest multiple of 2^-bits, ties to even; any shape."""
    rounded: NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(values, bits)), -bits)
    return rounded


def ordered_sum(values_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums each row in one fixed order, by folding the right half onto the left.

    Only element-wise additions take part, which IEEE 754 rounds the same way everywhere; a library's own sum or dot
    product depends on its version and on the processor. For sums that are not exact, such as squared norms.

    Returns:
        sum_N, float64; zeros where D is 0.
    """
    folded_ND = values_ND
    while (width := folded_ND.shape[1]) > 1:
        half = (width + 1) // 2
        left_ND = folded_ND[:, :half].copy()
        left_ND[:, : width - half] += folded_ND[:, half:]
        folded_ND = left_ND
    return folded_ND[:, 0] if folded_ND.shape[1] else np.zeros(len(values_ND))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keeps torch from starting threads below ours: tiles in parallel scale better than the operations inside a tile.

    The count belongs to the process, so this is for a process that runs one such computation at a time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Rows:
    """Stored rows with the two numbers that bound the error of screening them.

    Attributes:
        x_ND: float16, on the device that screens.
        norm_N: float32, |x'| of the bfloat16 rounding x' (0 only where x' is zero).
        residual_N: float32, |x - x'|.
    """

    x_ND: Tensor
    norm_N: Tensor
    residual_N: Tensor


@dataclass(frozen=True)
class Columns:
    """Columns prepared for the screen and for the exact recheck.

    Attributes:
        exact_KD: float64 on the grid, not centred.
        blocks_CD: the centred, rounded columns in blocks of at most `_COLUMNS`, each padded to a multiple of `_GROUP`
            with copies of its first column (a copy ties with a lower id, so it never wins).
        norm: the largest norm of a centred column, before or after rounding.
        residual: the largest norm of what rounding took from a centred column.
    """

    exact_KD: Tensor
    blocks_CD: list[Tensor]
    norm: float
    residual: float


@cache
def _score_dtype(device_type: str) -> torch.dtype:
    """The type that the screen multiplies in: bfloat16 where the processor has instructions for it, else float32.

    Operands are rounded to bfloat16 in both cases, so each float32 product is exact even where the user has allowed
    torch to multiply in TF32 or bfloat16. CUDA uses float32, as it may reduce bfloat16 products in bfloat16 on the way.
    """
    if device_type != "cpu":
        return torch.float32
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if any(probe() for probe in probes if probe) else torch.float32


def as_tensor(array: NDArray[np.generic], device: str | torch.device) -> Tensor:
    """Shares the array's memory where the device allows it; read-only arrays are fine, as nothing writes into them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def measure_rows(x_ND: NDArray[np.float16], *, threads: int = 1, device: str = "cpu") -> Rows:
    """Measures the rows once, for any number of screens to come.

    Args:
        x_ND: float16, any norm up to about 1; not copied on the CPU.
        threads: rows are measured in this many threads.
        device: where to keep the rows and to screen, such as `cuda`.
    """
    x = as_tensor(x_ND, device)
    norm_N, residual_N = torch.empty(2, len(x_ND), dtype=torch.float32, device=x.device)

    def measure(block: slice) -> None:
        exact_BD = x[block].float()
        rounded_BD = exact_BD.bfloat16().float()
        torch.linalg.vector_norm(rounded_BD, dim=1, out=norm_N[block])
        torch.linalg.vector_norm(exact_BD.sub_(rounded_BD), dim=1, out=residual_N[block])

    _for_each_block(len(x_ND), lambda: measure, threads)
    return Rows(x, norm_N, residual_N)


@one_torch_thread()
def prepare_columns(centroids_KD: NDArray[np.float64], *, device: str = "cpu", centre: bool = True) -> Columns:
    """Centres, rounds and measures the columns.

    Args:
        centroids_KD: float64 on the 2^-28 grid, K >= 1.
        device: where to screen.
        centre: subtract the mean column. Right for comparing columns with each other; a screen against a fixed
            threshold needs the plain scores, so it passes False.
    """
    mean_D = round_to_grid(centroids_KD.mean(axis=0)) if centre else np.zeros(centroids_KD.shape[1])
    centred_KD = as_tensor(centroids_KD - mean_D, device)
    rounded_KD = centred_KD.bfloat16()
    norm = torch.linalg.vector_norm(centred_KD, dim=1).max()
    rounded_norm = torch.linalg.vector_norm(rounded_KD.double(), dim=1).max()
    residual = torch.linalg.vector_norm(centred_KD - rounded_KD, dim=1).max()
    screened_KD = rounded_KD.to(_score_dtype(centred_KD.device.type))
    blocks_CD = [_pad(screened_KD[start : start + _COLUMNS]) for start in range(0, len(screened_KD), _COLUMNS)]
    return Columns(as_tensor(centroids_KD, device), blocks_CD, float(max(norm, rounded_norm)), float(residual))


def _pad(block_CD: Tensor) -> Tensor:
    return torch.cat([block_CD, block_CD[:1].expand(-len(block_CD) % _GROUP, -1)])


def error_bound(rows: Rows, columns: Columns) -> Tensor:
    """e(x) of the module's proof for each row: no float32 score is further than this from the exact one.

    Returns:
        error_N, float32.
    """
    accumulation = rows.x_ND.shape[1] * _ACCUMULATION * columns.norm
    error_N = rows.residual_N * columns.norm + rows.norm_N * (columns.residual + accumulation)
    return error_N.mul_(_SLACK)


def exact_dots(x_BD: Tensor, columns_KD: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
    """The exact float64 dot products of some pairs, without gathering the columns (ten times faster than gathering).

    Args:
        x_BD: float16 rows.
        columns_KD: float64 columns on the grid.
        row_P: int64 row of each pair, ascending.
        column_P: int64 column of each pair.
    """
    start_B = torch.searchsorted(row_P, torch.arange(len(x_BD) + 1, device=row_P.device))
    zeros_P = torch.zeros(len(row_P), dtype=torch.float64, device=row_P.device)
    pairs = torch.sparse_csr_tensor(start_B, column_P, zeros_P, (len(x_BD), len(columns_KD)))
    dot_P: Tensor = torch.sparse.sampled_addmm(pairs, x_BD.float().double(), columns_KD.T, beta=0.0).values()
    return dot_P


def assign(
    x_ND: NDArray[np.float16], centroids_KD: NDArray[np.float64], *, threads: int = 1, device: str = "cpu"
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The nearest centroid of every row, exactly.

    Args:
        x_ND: float16 unit rows; zero rows are allowed and go to cluster 0.
        centroids_KD: float64 on the 2^-28 grid, K >= 1.
        threads: the answer does not depend on it.
        device: the answer does not depend on it.

    Returns:
        cluster_N: int32, the centroid with the largest dot product, the lowest id among equals.
        similarity_N: float64 in [-1, 1], that dot product, exact (a multiple of 2^-52) and clipped.
    """
    rows, columns = measure_rows(x_ND, threads=threads, device=device), prepare_columns(centroids_KD, device=device)
    cluster_N = nearest(rows, columns, threads=threads)
    similarity_N = np.empty(len(x_ND))
    winner_N = torch.from_numpy(cluster_N).to(rows.x_ND.device)

    def score(block: slice) -> None:
        winner_B = winner_N[block].long()
        row_B = torch.arange(len(winner_B), device=winner_B.device)
        dots_B = exact_dots(rows.x_ND[block], columns.exact_KD, row_B, winner_B)
        similarity_N[block] = dots_B.clamp_(-1.0, 1.0).cpu().numpy()

    _for_each_block(len(x_ND), lambda: score, threads)
    return cluster_N, similarity_N


def nearest(rows: Rows, columns: Columns, *, threads: int = 1) -> NDArray[np.int32]:
    """The first half of `assign`, on operands prepared before: cluster_N, int32."""
    cluster_N = np.zeros(len(rows.x_ND), dtype=np.int32)
    if len(columns.exact_KD) == 1:
        return cluster_N
    error_N = error_bound(rows, columns)
    error_N.masked_fill_(rows.norm_N == 0, -torch.inf)  # a zero row ties everywhere: no candidates, so cluster 0

    def worker() -> Callable[[slice], None]:
        scratch = _Scratch(rows, columns)

        def find(block: slice) -> None:
            winner_B = _nearest_in_block(rows.x_ND[block], error_N[block], columns, scratch)
            cluster_N[block] = winner_B.cpu().numpy()

        return find

    _for_each_block(len(cluster_N), worker, threads)
    return cluster_N


class _Scratch:
    """Buffers of one thread; page faults of fresh ones would cost as much as the products."""

    def __init__(self, rows: Rows, columns: Columns) -> None:
        device, dims = rows.x_ND.device, rows.x_ND.shape[1]
        height, width = min(_ROWS, len(rows.x_ND)), max(map(len, columns.blocks_CD))
        self.dtype = columns.blocks_CD[0].dtype
        self.single_BD = torch.empty(height, dims, dtype=torch.float32, device=device)
        self.rounded_BD = torch.empty(height, dims, dtype=torch.bfloat16, device=device)
        self.score_flat = torch.empty(height * width, dtype=self.dtype, device=device)

    def round(self, x_BD: Tensor) -> Tensor:
        """The rows in bfloat16 (by way of float32: torch has no fast path from float16), in the type of the screen."""
        single_BD, rounded_BD = self.single_BD[: len(x_BD)], self.rounded_BD[: len(x_BD)]
        rounded_BD.copy_(single_BD.copy_(x_BD))
        return rounded_BD if self.dtype == torch.bfloat16 else single_BD.copy_(rounded_BD)

    def multiply(self, rounded_BD: Tensor, block_CD: Tensor) -> Tensor:
        """The scores of one tile, as integers that order like the scores wherever the scores are not negative."""
        shape = len(rounded_BD), len(block_CD)
        score_BC = self.score_flat[: shape[0] * shape[1]].view(shape)
        torch.mm(rounded_BD, block_CD.T, out=score_BC)
        return score_BC.view(torch.int16 if self.dtype == torch.bfloat16 else torch.int32)


def _nearest_in_block(x_BD: Tensor, error_B: Tensor, columns: Columns, scratch: _Scratch) -> Tensor:
    """Screens the block tile by tile, then lets exact dot products decide between the candidates that are left."""
    rounded_BD = scratch.round(x_BD)
    best_B: Tensor | None = None
    candidates = []
    for index, block_CD in enumerate(columns.blocks_CD):
        score_BC = scratch.multiply(rounded_BD, block_CD)
        group_BG = score_BC.view(len(x_BD), _GROUP, -1).amax(1)
        best_B = group_BG.amax(1) if best_B is None else torch.maximum(best_B, group_BG.amax(1))
        threshold_B = _threshold(best_B, error_B, scratch.dtype)
        row_P, column_P, score_P = _at_least(score_BC, group_BG, threshold_B)
        candidates.append((row_P, column_P + index * _COLUMNS, score_P))
        if len(x_BD) > 1 and sum(len(score_P) for *_, score_P in candidates) > _MOST_PAIRS:
            halves = zip(x_BD.tensor_split(2), error_B.tensor_split(2), strict=True)
            return torch.cat([_nearest_in_block(x_HD, error_H, columns, scratch) for x_HD, error_H in halves])
    row_P, column_P, score_P = (torch.cat(parts) for parts in zip(*candidates, strict=True))
    if len(columns.blocks_CD) > 1:  # earlier tiles were held against a lower threshold, and pairs are not yet by row
        keep_P = (score_P >= threshold_B[row_P]).nonzero().squeeze(1)
        keep_P = keep_P[torch.argsort(row_P[keep_P], stable=True)]
        row_P, column_P = row_P[keep_P], column_P[keep_P]
    return _decide(x_BD, columns.exact_KD, row_P, column_P)


def _threshold(best_B: Tensor, error_B: Tensor, dtype: torch.dtype) -> Tensor:
    """The score, as an integer, below which no column of the row can win.

    Integers order like the scores from +0 upwards. A threshold that is not above 0 therefore becomes the lowest
    integer, which makes every column a candidate; with centred columns the best score is hardly ever that small.
    """
    score_B = best_B.view(dtype).float()
    roundoff = _BFLOAT16_ROUNDOFF if dtype == torch.bfloat16 else 0.0
    lowest_B = score_B - (score_B.abs() * roundoff + 2 * error_B) * _SLACK
    return lowest_B.to(dtype).view(best_B.dtype).masked_fill_(lowest_B <= 0, torch.iinfo(best_B.dtype).min)


def _at_least(score_BC: Tensor, group_BG: Tensor, threshold_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and score of every pair that reaches its row's threshold, rows ascending."""
    groups = group_BG.shape[1]
    hit_P = _nonzero(group_BG, threshold_B)
    row_P, group_P = hit_P // groups, hit_P % groups
    stride_M = torch.arange(0, score_BC.shape[1], groups, device=score_BC.device)
    member_PM = (row_P * score_BC.shape[1] + group_P)[:, None] + stride_M
    score_PM = score_BC.view(-1)[member_PM]
    hit_P = _nonzero(score_PM, threshold_B[row_P])
    pair_P, member_P = hit_P // _GROUP, hit_P % _GROUP
    return row_P[pair_P], group_P[pair_P] + member_P * groups, score_PM.view(-1)[hit_P]


def _nonzero(value_BC: Tensor, threshold_B: Tensor) -> Tensor:
    """Flat positions of the values that reach their row's threshold; numpy is several times faster than torch at it."""
    if value_BC.device.type != "cpu":
        return (value_BC >= threshold_B[:, None]).view(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(value_BC.numpy() >= threshold_B.numpy()[:, None]))


def _decide(x_BD: Tensor, columns_KD: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
    """The winner of each row among its candidates, by exact dot product, lowest column first; 0 where there is none."""
    real_P = column_P < len(columns_KD)
    row_P, column_P = row_P[real_P], column_P[real_P]
    winner_B = torch.zeros(len(x_BD), dtype=torch.int64, device=x_BD.device)
    winner_B[row_P] = column_P
    open_B = torch.bincount(row_P, minlength=len(x_BD)) > 1
    open_U = open_B.nonzero().squeeze(1)
    open_P = open_B[row_P]
    row_P, column_P = torch.searchsorted(open_U, row_P[open_P]), column_P[open_P]
    dot_P = exact_dots(x_BD[open_U], columns_KD, row_P, column_P)
    best_U = dot_P.new_full((len(open_U),), -torch.inf).scatter_reduce_(0, row_P, dot_P, "amax")
    ties_P = torch.where(dot_P == best_U[row_P], column_P, len(columns_KD))
    winner_B[open_U] = winner_B.new_full((len(open_U),), len(columns_KD)).scatter_reduce_(0, row_P, ties_P, "amin")
    return winner_B


def _for_each_block(num_rows: int, worker: Callable[[], Callable[[slice], None]], threads: int) -> None:
    """Runs over row blocks in threads; each thread asks `worker` once for the function to apply to its blocks."""
    starts = iter(range(0, num_rows, _ROWS))  # shared: taking the next item of a range is atomic in CPython

    def run() -> None:
        work = worker()
        for start in starts:
            work(slice(start, min(start + _ROWS, num_rows)))

    with one_torch_thread():
        if threads == 1 or num_rows <= _ROWS:
            run()
            return
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(run) for _ in range(threads)]:
                done.result()
