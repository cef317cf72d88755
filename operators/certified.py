"""Certified arithmetic: the nearest column of every row, exactly, at the speed of a bfloat16 product.

A bfloat16 product of rows and columns is made tile by tile. Columns whose score is so far below the best that the bound
of `operators.screen` rules them out are dropped; between the rest, exact dot products decide, and the lowest column id
among equals. Nothing that depends on threads, tile shapes or the device takes part in a decision.

Legend: N rows, B rows of one block, K columns (centroids), C columns of one block, D dimensions, P candidate pairs.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.screen import (
    BLOCK_ROWS,
    GROUP,
    SLACK,
    Columns,
    Rows,
    error_bound,
    exact_scores,
    for_each_block,
    measure_rows,
    prepare_columns,
)

_MOST_PAIRS = 4_000_000
"""Candidate pairs of a block beyond which the block is halved: where nearly all columns are alike, nearly all pairs are
candidates, and memory stays bounded."""

_BFLOAT16_ROUNDOFF = 2.0**-8


def assign(
    x_ND: NDArray[np.float16],
    centroids_KD: NDArray[np.float64],
    offset_K: NDArray[np.float64] | None = None,
    *,
    threads: int = 1,
    device: str = "cpu",
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The nearest centroid of every row, exactly.

    Args:
        x_ND: float16 unit rows; zero rows are allowed.
        centroids_KD: float64 on the 2^-28 grid, K >= 1.
        offset_K: what is added to the dot products (`operators.kmeans.offsets`); None adds nothing.
        threads: the answer does not depend on it.
        device: the answer does not depend on it.

    Returns:
        cluster_N: int32, the centroid with the largest dot product and offset, the lowest id among equals.
        similarity_N: float64 in [-1, 1], that sum, exact (a multiple of 2^-52) and clipped.
    """
    rows = measure_rows(x_ND, threads=threads, device=device)
    columns = prepare_columns(centroids_KD, offset_K, device=device)
    cluster_N = nearest(rows, columns, threads=threads)
    return cluster_N, similarities(rows, columns, cluster_N, threads=threads).clip(-1.0, 1.0)


def similarities(
    rows: Rows, columns: Columns, cluster_N: NDArray[np.int32], *, threads: int = 1
) -> NDArray[np.float64]:
    """The exact dot product and offset of each row with one column: similarity_N, float64, not clipped."""
    similarity_N = np.empty(len(cluster_N))

    def score(block: slice) -> None:
        column_B = torch.from_numpy(cluster_N[block]).to(rows.x_ND.device, torch.int64)
        row_B = torch.arange(len(column_B), device=column_B.device)
        similarity_N[block] = exact_scores(rows.x_ND[block], columns, row_B, column_B).cpu().numpy()

    for_each_block(len(cluster_N), lambda: score, threads)
    return similarity_N


def nearest(rows: Rows, columns: Columns, *, threads: int = 1) -> NDArray[np.int32]:
    """The first half of `assign`, on operands prepared before: cluster_N, int32."""
    cluster_N = np.zeros(len(rows.x_ND), dtype=np.int32)
    if len(columns.exact_KD) == 1:
        return cluster_N
    error_N = error_bound(rows, columns)
    if columns.offset_K is None:
        error_N.masked_fill_(rows.norm_N == 0, -torch.inf)  # a zero row ties everywhere: no candidates, so cluster 0

    def worker() -> Callable[[slice], None]:
        scratch = _Scratch(rows, columns)

        def find(block: slice) -> None:
            winner_B = _nearest_in_block(rows.x_ND[block], error_N[block], columns, scratch)
            cluster_N[block] = winner_B.cpu().numpy()

        return find

    for_each_block(len(cluster_N), worker, threads)
    return cluster_N


class _Scratch:
    """Buffers of one thread; page faults of fresh ones would cost as much as the products."""

    def __init__(self, rows: Rows, columns: Columns) -> None:
        device, dims = rows.x_ND.device, columns.blocks_CD[0].shape[1]
        height, width = min(BLOCK_ROWS, len(rows.x_ND)), max(map(len, columns.blocks_CD))
        self.dtype = columns.blocks_CD[0].dtype
        self.single_BD = torch.ones(height, dims, dtype=torch.float32, device=device)  # ones meet the offsets
        self.rounded_BD = torch.empty(height, dims, dtype=torch.bfloat16, device=device)
        self.score_flat = torch.empty(height * width, dtype=self.dtype, device=device)

    def round(self, x_BD: Tensor) -> Tensor:
        """The rows in bfloat16 (by way of float32: torch has no fast path from float16), in the type of the screen."""
        single_BD, rounded_BD = self.single_BD[: len(x_BD)], self.rounded_BD[: len(x_BD)]
        single_BD[:, : x_BD.shape[1]].copy_(x_BD)
        rounded_BD.copy_(single_BD)
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
        group_BG = score_BC.view(len(x_BD), GROUP, -1).amax(1)
        best_B = group_BG.amax(1) if best_B is None else torch.maximum(best_B, group_BG.amax(1))
        threshold_B = _threshold(best_B, error_B, scratch.dtype)
        row_P, column_P, score_P = _at_least(score_BC, group_BG, threshold_B)
        candidates.append((row_P, column_P + index * len(columns.blocks_CD[0]), score_P))
        if len(x_BD) > 1 and sum(len(score_P) for *_, score_P in candidates) > _MOST_PAIRS:
            halves = zip(x_BD.tensor_split(2), error_B.tensor_split(2), strict=True)
            return torch.cat([_nearest_in_block(x_HD, error_H, columns, scratch) for x_HD, error_H in halves])
    row_P, column_P, score_P = (torch.cat(parts) for parts in zip(*candidates, strict=True))
    if len(columns.blocks_CD) > 1:  # earlier tiles were held against a lower threshold, and pairs are not yet by row
        keep_P = (score_P >= threshold_B[row_P]).nonzero().squeeze(1)
        keep_P = keep_P[torch.argsort(row_P[keep_P], stable=True)]
        row_P, column_P = row_P[keep_P], column_P[keep_P]
    return _decide(x_BD, columns, row_P, column_P)


def _threshold(best_B: Tensor, error_B: Tensor, dtype: torch.dtype) -> Tensor:
    """The score, as an integer, below which no column of the row can win.

    Integers order like the scores from +0 upwards. A threshold that is not above 0 therefore becomes the lowest
    integer, which makes every column a candidate; with centred columns the best score is hardly ever that small.
    """
    score_B = best_B.view(dtype).float()
    roundoff = _BFLOAT16_ROUNDOFF if dtype == torch.bfloat16 else 0.0
    lowest_B = score_B - (score_B.abs() * roundoff + 2 * error_B) * SLACK
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
    pair_P, member_P = hit_P // GROUP, hit_P % GROUP
    return row_P[pair_P], group_P[pair_P] + member_P * groups, score_PM.view(-1)[hit_P]


def _nonzero(value_BC: Tensor, threshold_B: Tensor) -> Tensor:
    """Flat positions of the values that reach their row's threshold; numpy is several times faster than torch at it."""
    if value_BC.device.type != "cpu":
        return (value_BC >= threshold_B[:, None]).view(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(value_BC.numpy() >= threshold_B.numpy()[:, None]))


def _decide(x_BD: Tensor, columns: Columns, row_P: Tensor, column_P: Tensor) -> Tensor:
    """The winner of each row among its candidates, by exact score, lowest column first; 0 where there is none."""
    num_columns = len(columns.exact_KD)
    real_P = column_P < num_columns
    row_P, column_P = row_P[real_P], column_P[real_P]
    winner_B = torch.zeros(len(x_BD), dtype=torch.int64, device=x_BD.device)
    winner_B[row_P] = column_P
    open_B = torch.bincount(row_P, minlength=len(x_BD)) > 1
    open_U = open_B.nonzero().squeeze(1)
    open_P = open_B[row_P]
    row_P, column_P = torch.searchsorted(open_U, row_P[open_P]), column_P[open_P]
    score_P = exact_scores(x_BD[open_U], columns, row_P, column_P)
    best_U = score_P.new_full((len(open_U),), -torch.inf).scatter_reduce_(0, row_P, score_P, "amax")
    ties_P = torch.where(score_P == best_U[row_P], column_P, num_columns)
    winner_B[open_U] = winner_B.new_full((len(open_U),), num_columns).scatter_reduce_(0, row_P, ties_P, "amin")
    return winner_B
