"""The order in which samples are seen: a function of the seed and of the pool, never of workers or of time.

A pool is a list of pieces (shards) of so many rows each. An epoch visits its pieces in a random order, in windows of at
least so many samples, and the samples of a window in a random order; a pool smaller than a window is permuted whole.
Epochs follow one another without a gap, so a position in the endless sequence of samples says all about what was seen.

A row of weight w appears floor(w) times in an epoch, and once more with probability w - floor(w). How many rows of a
piece do so is settled by systematic sampling over the pieces (one random number an epoch), so that the length of an
epoch is known without looking at rows, and hardly varies; which rows of the piece do is drawn.

Consecutive samples are different rows within an epoch whose weights are 1 at most. A batch may hold a row more than
once where weights above 1 repeat it, and where one epoch ends in the batch and the next begins.

Legend: P pieces, N samples of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.hashing import generator

Ints = NDArray[np.int64]


class Visits(NamedTuple):
    """Samples in the order in which they are seen: all int64 (N,).

    Attributes:
        epoch_N: counted from 0.
        piece_N: index of the piece.
        row_N: index of the row in its piece.
        repeat_N: which time in the epoch: 0 but for rows of a weight above 1.
    """

    epoch_N: Ints
    piece_N: Ints
    row_N: Ints
    repeat_N: Ints

    def part(self, rows: slice | Ints) -> "Visits":
        """Some of the samples."""
        return Visits(self.epoch_N[rows], self.piece_N[rows], self.row_N[rows], self.repeat_N[rows])


class Window(NamedTuple):
    """Pieces that are shuffled together.

    Attributes:
        epoch: counted from 0.
        number: of the window in its epoch.
        pieces: their indices.
        size: samples.
    """

    epoch: int
    number: int
    pieces: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Order:
    """The order of a pool.

    Attributes:
        seed: of the run.
        names: of the pieces, all different: what draws are keyed by.
        rows: of each piece.
        weights: of each piece's rows.
        window: samples that are shuffled together, at least.
    """

    seed: int
    names: tuple[str, ...]
    rows: tuple[int, ...]
    weights: tuple[float, ...]
    window: int

    def counts(self, epoch: int) -> Ints:
        """How many samples each piece gives in an epoch, int64 (P,)."""
        rows_P = np.asarray(self.rows, dtype=np.int64)
        weights_P = np.asarray(self.weights, dtype=np.float64)
        whole_P = np.floor(weights_P).astype(np.int64)
        offset = generator(self.seed, "training offset", str(epoch)).random()
        extra_P = np.floor(np.cumsum((weights_P - whole_P) * rows_P) + offset).astype(np.int64)
        return whole_P * rows_P + np.diff(extra_P, prepend=0)

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order; pieces that give nothing are in none."""
        counts_P = self.counts(epoch)
        shuffled_P = generator(self.seed, "training pieces", str(epoch)).permutation(len(self.names))
        windows: list[Window] = []
        pieces: list[int] = []
        size = 0
        for piece in (int(piece) for piece in shuffled_P if counts_P[piece]):
            pieces.append(piece)
            size += int(counts_P[piece])
            if size >= self.window:
                windows.append(Window(epoch, len(windows), tuple(pieces), size))
                pieces, size = [], 0
        if pieces:
            windows.append(Window(epoch, len(windows), tuple(pieces), size))
        return windows

    def visits(self, window: Window) -> Visits:
        """The samples of a window, in order."""
        counts_P = self.counts(window.epoch)
        rows, repeats, pieces = [], [], []
        for piece in window.pieces:
            row_N, repeat_N = self._appearances(window.epoch, piece, int(counts_P[piece]))
            rows.append(row_N)
            repeats.append(repeat_N)
            pieces.append(np.full(len(row_N), piece, dtype=np.int64))
        labels = ("training samples", str(window.epoch), str(window.number))
        order_N = generator(self.seed, *labels).permutation(window.size)
        piece_N, row_N, repeat_N = (np.concatenate(column)[order_N] for column in (pieces, rows, repeats))
        return Visits(np.full(window.size, window.epoch, dtype=np.int64), piece_N, row_N, repeat_N)

    def windows_from(self, position: int) -> Iterator[tuple[Window, int]]:
        """The windows from a position in the endless sequence, each with how many of its samples lie before it.

        Raises:
            ValueError: the pool has no samples.
        """
        if not any(rows and weight for rows, weight in zip(self.rows, self.weights, strict=True)):
            raise ValueError("the pool must have samples of a positive weight, got none")
        epoch = 0
        while True:
            size = int(self.counts(epoch).sum())  # 0 by chance where weights are tiny
            if position < size:
                for window in self.windows(epoch):
                    if position < window.size:
                        yield window, position
                    position = max(0, position - window.size)
            else:
                position -= size
            epoch += 1

    def _appearances(self, epoch: int, piece: int, count: int) -> tuple[Ints, Ints]:
        """Rows and repeats of a piece that gives `count` samples in an epoch, in the order of rows."""
        rows, whole = self.rows[piece], int(self.weights[piece])
        times_N = np.full(rows, whole, dtype=np.int64)
        extra = count - whole * rows
        if extra:
            drawn = generator(self.seed, "training weights", str(epoch), self.names[piece])
            times_N[drawn.choice(rows, extra, replace=False)] += 1
        row_N = np.repeat(np.arange(rows, dtype=np.int64), times_N)
        starts_N = np.repeat(np.cumsum(times_N) - times_N, times_N)
        return row_N, np.arange(len(row_N), dtype=np.int64) - starts_N
