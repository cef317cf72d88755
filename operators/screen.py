"""Fast products and a proven bound on their error: what is needed to tell which few products must be computed exactly.

Legend: N rows, B rows of one block, K columns (centroids), C columns of one block, D dimensions, P pairs.

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

**Offsets.** Euclidean distance is decided by <x, c> + o with an offset o for each column (`operators.kmeans.offsets`).
Offsets are multiples of 2^-52 and keep the sum below 2, so it is exact as well. For the screen, o (less the mean
offset) is written as the sum of three bfloat16 numbers and what is left, and the three travel in the product as
coordinates of the column against ones in the row. To e(x) that adds what is left, and D + 3 for D and the magnitudes of
the three in the accumulation: the constant `spill`.
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

from operators.exact import round_to_grid

BLOCK_ROWS, BLOCK_COLUMNS = 2048, 1024
"""Shape of a tile of scores (4 MB in bfloat16). Measured: smaller tiles wait for the interpreter, larger for memory."""

GROUP = 8
"""Columns that share one maximum in the first pass over a tile, so that the second pass sees an eighth of it."""

ACCUMULATION = 2.0**-22
SLACK = 1 + 2.0**-10  # more than the rounding errors made while computing the bound itself

_PIECES = 3  # bfloat16 numbers that an offset is split into: 24 bits of it

with warnings.catch_warnings():  # torch warns once in a process that CSR tensors are in beta: it may as well be here
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


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

    def take(self, chosen: slice | Tensor) -> "Rows":
        """Some of the rows; a view where `chosen` is a slice."""
        return Rows(self.x_ND[chosen], self.norm_N[chosen], self.residual_N[chosen])


@dataclass(frozen=True)
class Columns:
    """Columns prepared for the screen and for the exact recheck.

    Attributes:
        exact_KD: float64 on the grid, not centred.
        offset_K: float64, what is added to the dot products, or None.
        blocks_CD: the centred, rounded columns in blocks of at most `BLOCK_COLUMNS`, each padded to a multiple of
            `GROUP` with copies of its first column (a copy ties with a lower id, so it never wins); D is 3 more where
            there are offsets.
        norm: the largest norm of a centred column, before or after rounding.
        residual: the largest norm of what rounding took from a centred column.
        spill: what offsets add to the error of any score.
    """

    exact_KD: Tensor
    offset_K: Tensor | None
    blocks_CD: list[Tensor]
    norm: float
    residual: float
    spill: float


@cache
def score_dtype(device_type: str) -> torch.dtype:
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

    for_each_block(len(x_ND), lambda: measure, threads)
    return Rows(x, norm_N, residual_N)


@one_torch_thread()
def prepare_columns(
    centroids_KD: NDArray[np.float64],
    offset_K: NDArray[np.float64] | None = None,
    *,
    device: str = "cpu",
    centre: bool = True,
) -> Columns:
    """Centres, rounds and measures the columns.

    Args:
        centroids_KD: float64 on the 2^-28 grid, K >= 1.
        offset_K: float64 multiples of 2^-52 that are added to the dot products, |offset| + |<x, c>| < 2.
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
    exact_offset_K, spill = None, 0.0
    if offset_K is not None:
        exact_offset_K = as_tensor(offset_K, device)
        pieces_K3, spill = _split_offsets(exact_offset_K - float(round_to_grid(offset_K.mean())))
        accumulation = (centroids_KD.shape[1] + _PIECES) * ACCUMULATION
        spill += accumulation * float(pieces_K3.double().abs().sum(dim=1).max())
        rounded_KD = torch.cat([rounded_KD, pieces_K3], dim=1)
    screened_KD = rounded_KD.to(score_dtype(centred_KD.device.type))
    blocks_CD = [
        _pad(screened_KD[start : start + BLOCK_COLUMNS]) for start in range(0, len(screened_KD), BLOCK_COLUMNS)
    ]
    exact_KD = as_tensor(centroids_KD, device)
    return Columns(exact_KD, exact_offset_K, blocks_CD, float(max(norm, rounded_norm)), float(residual), spill)


def _split_offsets(offset_K: Tensor) -> tuple[Tensor, float]:
    """Three bfloat16 numbers whose sum is nearly the offset, and the most that any offset has left."""
    pieces = []
    for _ in range(_PIECES):
        pieces.append(offset_K.bfloat16())
        offset_K = offset_K - pieces[-1].double()
    return torch.stack(pieces, dim=1), float(offset_K.abs().max())


def _pad(block_CD: Tensor) -> Tensor:
    return torch.cat([block_CD, block_CD[:1].expand(-len(block_CD) % GROUP, -1)])


def error_bound(rows: Rows, columns: Columns) -> Tensor:
    """e(x) of the module's proof for each row: no float32 score is further than this from the exact one.

    Returns:
        error_N, float32.
    """
    accumulation = columns.blocks_CD[0].shape[1] * ACCUMULATION * columns.norm
    error_N = rows.residual_N * columns.norm + rows.norm_N * (columns.residual + accumulation) + columns.spill
    return error_N.mul_(SLACK)


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


def exact_scores(x_BD: Tensor, columns: Columns, row_P: Tensor, column_P: Tensor) -> Tensor:
    """What decides: the exact dot products, with the offsets where there are any."""
    dot_P = exact_dots(x_BD, columns.exact_KD, row_P, column_P)
    return dot_P if columns.offset_K is None else dot_P + columns.offset_K[column_P]


def for_each_block(num_rows: int, worker: Callable[[], Callable[[slice], None]], threads: int) -> None:
    """Runs over row blocks in threads; each thread asks `worker` once for the function to apply to its blocks."""
    starts = iter(range(0, num_rows, BLOCK_ROWS))  # shared: taking the next item of a range is atomic in CPython

    def run() -> None:
        work = worker()
        for start in starts:
            work(slice(start, min(start + BLOCK_ROWS, num_rows)))

    with one_torch_thread():
        if threads == 1 or num_rows <= BLOCK_ROWS:
            run()
            return
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(run) for _ in range(threads)]:
                done.result()
