"""All pairs of stored rows that are more similar than a threshold, exactly, tile by tile.

Legend: N rows of one set, M of the other, B rows and C columns of a tile, P pairs, E epsilons, D dimensions.

A pair is near at epsilon when the exact dot product of its stored rows is greater than 1 - epsilon. A bfloat16 product
of each tile screens: with e(x) the error bound of `operators.certified` (the largest of the tile's rows), an exact
product above t has a float32 score above t - e, so, as rounding is monotone, a stored score of at least
round(t - e); and an exact product of at most t has one of at most t + e. What lies between is computed exactly.
Memory is bounded by the tile, however many rows there are and however many of them are alike.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.screen import ACCUMULATION, exact_dots, measure_rows, one_torch_thread, score_dtype

SMALLEST_EPSILON = 5e-4
"""Rounding to float16 leaves the lengths of rows within about 5e-4 of 1, so less says nothing about the images."""

LARGEST_EPSILON = 0.5

TILE = 1024
"""Rows and columns of a tile: 2 MB of scores, which stay in the cache, and at most 2^20 pairs."""

_SLACK = 1 + 2.0**-10  # more than the rounding errors made while computing the bound itself
_DENSE = 8
"""Where more than one in this many pairs of a tile need an exact product, all of them are computed at once."""


class Pairs(NamedTuple):
    """Near pairs of one tile, by row and then by column, both ascending.

    Attributes:
        row_P: int64, positions in the first set.
        column_P: int64, positions in the second set.
        level_P: int8, index of the smallest epsilon at which the pair is near.
    """

    row_P: NDArray[np.int64]
    column_P: NDArray[np.int64]
    level_P: NDArray[np.int8]

    def take(self, chosen_P: NDArray[np.bool_]) -> "Pairs":
        """Some of the pairs, in the same order."""
        return Pairs(self.row_P[chosen_P], self.column_P[chosen_P], self.level_P[chosen_P])


@dataclass(frozen=True)
class Screened:
    """Stored rows, made ready to be compared.

    Attributes:
        x_ND: float16, as stored.
        rounded_ND: the same in bfloat16.
        norm_N: float32, |x'| of the rounded row.
        residual_N: float32, |x - x'|.
    """

    x_ND: Tensor
    rounded_ND: Tensor
    norm_N: Tensor
    residual_N: Tensor

    def __len__(self) -> int:
        return len(self.x_ND)

    def take(self, chosen: slice | NDArray[np.int64]) -> "Screened":
        """Some of the rows; a view where `chosen` is a slice."""
        index = chosen if isinstance(chosen, slice) else torch.from_numpy(chosen).to(self.x_ND.device)
        return Screened(self.x_ND[index], self.rounded_ND[index], self.norm_N[index], self.residual_N[index])


def thresholds(epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - epsilon for each epsilon.

    Args:
        epsilons: float64_E, ascending, from `SMALLEST_EPSILON` to `LARGEST_EPSILON`.
    """
    assert (np.diff(epsilons) > 0).all(), epsilons
    assert SMALLEST_EPSILON <= epsilons[0] <= epsilons[-1] <= LARGEST_EPSILON, epsilons
    return 1.0 - epsilons


def screen(x_ND: NDArray[np.float16], *, device: str = "cpu") -> Screened:
    """Rounds and measures rows once, for all tiles they will be in. Adds 2 D + 8 bytes a row to them.

    Args:
        x_ND: float16 unit rows, or zeros.
        device: where to compare.
    """
    rows = measure_rows(x_ND, device=device)
    rounded_ND = torch.empty(rows.x_ND.shape, dtype=torch.bfloat16, device=rows.x_ND.device)
    for start in range(0, len(x_ND), TILE):
        rounded_ND[start : start + TILE] = rows.x_ND[start : start + TILE].float()
    return Screened(rows.x_ND, rounded_ND, rows.norm_N, rows.residual_N)


def near_pairs(
    left: Screened,
    right: Screened,
    threshold_E: NDArray[np.float64],
    *,
    columns_of: NDArray[np.int64] | None = None,
    threads: int = 1,
) -> Iterator[Pairs]:
    """Yields the near pairs of every tile that has any: tiles of the first rows first, in order of columns.

    Args:
        left: N rows.
        right: M rows.
        threshold_E: `thresholds`.
        columns_of: int64_N, ascending: row i is compared with the first columns_of[i] columns only. Default: with all.
        threads: tiles at once. The answer does not depend on it.
    """
    tiles = _tiles(left, right, columns_of)
    look = partial(_tile, left, right, threshold_E, columns_of)
    with one_torch_thread():
        found = map(look, tiles) if threads == 1 else _ahead(look, tiles, threads)
        yield from (pairs for pairs in found if len(pairs.row_P))


def exact_pairs(
    left: Screened, right: Screened, row_P: NDArray[np.int64], column_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The exact cosine of some pairs, clipped to [-1, 1]."""
    dot_P = np.empty(len(row_P))
    for part in _slices(len(row_P)):
        x_BD = left.x_ND[torch.from_numpy(row_P[part])].float().double()
        y_BD = right.x_ND[torch.from_numpy(column_P[part])].float().double()
        dot_P[part] = (x_BD * y_BD).sum(1).cpu().numpy()
    return dot_P.clip(-1.0, 1.0)


def _slices(stop: int) -> Iterator[slice]:
    for first in range(0, stop, TILE):
        yield slice(first, min(first + TILE, stop))


def _tiles(left: Screened, right: Screened, columns_of: NDArray[np.int64] | None) -> Iterator[tuple[slice, slice]]:
    for rows in _slices(len(left)):
        for columns in _slices(len(right) if columns_of is None else int(columns_of[rows][-1])):
            yield rows, columns


def _ahead(
    look: Callable[[tuple[slice, slice]], Pairs], tiles: Iterable[tuple[slice, slice]], threads: int
) -> Iterator[Pairs]:
    """`look` at each tile, in order, in threads that run ahead no further than memory allows."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Pairs]] = deque()
        for tile in tiles:
            waiting.append(pool.submit(look, tile))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _tile(
    left: Screened,
    right: Screened,
    threshold_E: NDArray[np.float64],
    columns_of: NDArray[np.int64] | None,
    tile: tuple[slice, slice],
) -> Pairs:
    rows, columns = tile
    x, y = left.take(rows), right.take(columns)
    dtype = score_dtype(x.x_ND.device.type)
    score_BC = torch.mm(x.rounded_ND.to(dtype), y.rounded_ND.to(dtype).T)
    error = _error(x, y)
    row_P, column_P = _at_least(score_BC, float(threshold_E[-1]) - error)
    if columns_of is not None:
        inside_P = column_P + columns.start < columns_of[rows][row_P]
        row_P, column_P = row_P[inside_P], column_P[inside_P]
    level_P = _levels(x, y, score_BC, row_P, column_P, threshold_E, error)
    near = Pairs(row_P + rows.start, column_P + columns.start, level_P)
    return near.take(level_P < len(threshold_E))


def _error(x: Screened, y: Screened) -> float:
    """The largest e(x) of a tile: no float32 score is further than this from its exact product."""
    x_norm, x_residual = float(x.norm_N.max()), float(x.residual_N.max())
    y_norm, y_residual = float(y.norm_N.max()), float(y.residual_N.max())
    accumulation = x.x_ND.shape[1] * ACCUMULATION * y_norm
    return (x_residual * (y_norm + y_residual) + x_norm * (y_residual + accumulation)) * _SLACK


def _at_least(score_BC: Tensor, lowest: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the scores that reach round(lowest), which is positive, so that integers order like the scores."""
    integer = torch.int16 if score_BC.dtype == torch.bfloat16 else torch.int32
    bound = torch.tensor(lowest).to(score_BC.dtype).view(integer).item()
    hit_P = np.flatnonzero((score_BC.view(integer) >= bound).cpu().numpy())
    return np.divmod(hit_P, score_BC.shape[1])


def _levels(
    x: Screened,
    y: Screened,
    score_BC: Tensor,
    row_P: NDArray[np.int64],
    column_P: NDArray[np.int64],
    threshold_E: NDArray[np.float64],
    error: float,
) -> NDArray[np.int8]:
    """How many thresholds each pair does not exceed. Exact: products are computed where the score leaves a doubt."""
    score_P = score_BC[torch.from_numpy(row_P), torch.from_numpy(column_P)].double().cpu().numpy()
    doubt = error + (2.0**-8 if score_BC.dtype == torch.bfloat16 else 2.0**-23) * 1.25  # of a score below 1.25
    level_P, other_P = _level(threshold_E, score_P - doubt), _level(threshold_E, score_P + doubt)
    open_U = np.flatnonzero(level_P != other_P)
    if len(open_U) * _DENSE > score_BC.numel():
        dot_BC = x.x_ND.float().double() @ y.x_ND.float().double().T
        dot_U = dot_BC[torch.from_numpy(row_P[open_U]), torch.from_numpy(column_P[open_U])]
        level_P[open_U] = _level(threshold_E, dot_U.cpu().numpy())
    elif len(open_U):
        row_U, column_U = torch.from_numpy(row_P[open_U]), torch.from_numpy(column_P[open_U])
        used_C, column_U = torch.unique(column_U, return_inverse=True)
        dot_U = exact_dots(x.x_ND, y.x_ND[used_C].float().double(), row_U, column_U)
        level_P[open_U] = _level(threshold_E, dot_U.cpu().numpy())
    return level_P


def _level(threshold_E: NDArray[np.float64], value_P: NDArray[np.float64]) -> NDArray[np.int8]:
    ascending_E = threshold_E[::-1]
    return (len(ascending_E) - np.searchsorted(ascending_E, value_P, side="left")).astype(np.int8)
