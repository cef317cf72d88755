"""One actor that decides what is decoded and dealt when; pixels go from tasks to workers past it.

It outlives the workers, so what is decoded stays so when a lost worker is replaced. It is told how many workers there
are and where to begin, and hands out references; the samples of a step depend on neither.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from operators.encoders.settings import OpenClipSettings
from operators.training.ordering import Order, Visits, Window
from pipeline.training.dealing import Dealing, Hand, Picks, deal
from pipeline.training.decoding import Block, decode_shard
from pipeline.training.examples import Piece

DEAL_SAMPLES = 1024
"""Samples of a deal, at least: several small batches share the cost of a task."""
LOOKAHEAD = 2
"""Deals that are made before anyone asks."""


@dataclass(frozen=True)
class Feed:
    """All that a feeder needs to know.

    Attributes:
        pieces: of the training set.
        order: of their rows.
        model: whose transform and tokenizer.
        dealing: how appearances are drawn.
        batch_size: of the whole batch.
        num_steps: of the whole training.
        rows_per_block: of decoded blocks.
        decoders: shards that are decoded at a time.
        keep_all: whether what is decoded stays for the next epoch.
        blocks: of pieces that someone else has decoded, by index.
    """

    pieces: tuple[Piece, ...]
    order: Order
    model: OpenClipSettings
    dealing: Dealing
    batch_size: int
    num_steps: int
    rows_per_block: int
    decoders: int
    keep_all: bool
    blocks: Mapping[int, Sequence[Any]] = field(default_factory=dict)

    @property
    def steps_per_deal(self) -> int:
        """Batches that are dealt together."""
        return max(1, DEAL_SAMPLES // self.batch_size)


class Feeder:
    """Hands out references to what each worker trains on."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._dealing = ray.put(feed.dealing)
        self._blocks: dict[int, Sequence[Any]] = dict(feed.blocks)
        self._done: deque[Any] = deque([None] * feed.decoders, maxlen=feed.decoders)
        self._attempt = 0
        self._left: Visits

    def start(self, workers: int, first_step: int) -> int:
        """Begins to deal at a step, forgetting earlier deals. Returns the number of the attempt, for `take`."""
        feed = self._feed
        self._attempt += 1
        self._workers = workers
        self._next_step = first_step
        self._deals: list[list[Any]] = []
        self._windows = feed.order.windows_from(first_step * feed.batch_size)
        self._ahead: tuple[Window, int] = next(self._windows)
        self._enter()
        return self._attempt

    def take(self, attempt: int, rank: int, number: int) -> Any:
        """A reference, in a list, to a worker's hand of a deal; the deals are numbered from 0.

        Raises:
            RuntimeError: a worker of an earlier attempt asks, or the feeder was itself restarted.
        """
        if attempt != self._attempt:
            raise RuntimeError(f"attempt {attempt} is over")
        while len(self._deals) <= number + LOOKAHEAD and self._next_step < self._feed.num_steps:
            self._deals.append(self._deal())
        hand, self._deals[number][rank] = self._deals[number][rank], None
        return [hand]

    def _deal(self) -> list[Any]:
        feed = self._feed
        steps = min(feed.steps_per_deal, feed.num_steps - self._next_step)
        self._next_step += steps
        picks, blocks = self._picks(self._visits(steps * feed.batch_size))
        task = _DEAL.options(num_returns=self._workers)
        hands = task.remote(self._dealing, picks, feed.batch_size, self._workers, *blocks)
        self._release()
        return [hands] if self._workers == 1 else list(hands)

    def _visits(self, count: int) -> Visits:
        """The next samples, from as many windows as it takes."""
        parts = []
        while count:
            if not len(self._left.row_N):
                self._enter()
            part, self._left = self._left.part(slice(count)), self._left.part(slice(count, None))
            count -= len(part.row_N)
            parts.append(part)
        return Visits(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _enter(self) -> None:
        """Goes on to the next window, and has the one after it decoded."""
        window, seen = self._ahead
        self._ahead = next(self._windows)
        self._decode(window)
        self._decode(self._ahead[0])
        self._left = self._feed.order.visits(window).part(slice(seen, None))
        self._pieces = {*window.pieces, *self._ahead[0].pieces}

    def _decode(self, window: Window) -> None:
        feed = self._feed
        for index in window.pieces:
            if index not in self._blocks:
                self._blocks[index], done = decode_piece(feed, feed.pieces[index], self._done[0])
                self._done.append(done)

    def _picks(self, visits: Visits) -> tuple[Picks, list[Any]]:
        """Where the samples lie among the blocks that hold them, and those blocks."""
        feed = self._feed
        place_N = visits.row_N // feed.rows_per_block
        places_M2, block_N = np.unique(np.stack([visits.piece_N, place_N], axis=1), axis=0, return_inverse=True)
        portions_P = np.asarray([piece.portion for piece in feed.pieces])
        picks = Picks(
            block_N=block_N.reshape(-1),
            row_N=visits.row_N % feed.rows_per_block,
            portion_N=portions_P[visits.piece_N],
            epoch_N=visits.epoch_N,
            repeat_N=visits.repeat_N,
        )
        return picks, [self._blocks[piece][place] for piece, place in places_M2.tolist()]

    def _release(self) -> None:
        if not self._feed.keep_all:
            self._blocks = {piece: refs for piece, refs in self._blocks.items() if piece in self._pieces}


def decode_piece(feed: Feed, piece: Piece, earlier: Any) -> tuple[list[Any], Any]:
    """Has a shard decoded once an earlier one is.

    Args:
        feed: that it is a piece of.
        piece: the shard.
        earlier: what the earlier one gave as its end; None begins at once.

    Returns:
        references to its blocks, and one to its end.
    """
    task = _DECODE.options(num_returns=-(-piece.rows // feed.rows_per_block) + 1)
    *blocks, done = task.remote(piece, feed.model, feed.rows_per_block, earlier)
    return blocks, done


def _deal(dealing: Dealing, picks: Picks, batch_size: int, workers: int, *blocks: Block) -> list[Hand] | Hand:
    hands = deal(dealing, picks, batch_size, workers, *blocks)
    return hands if workers > 1 else hands[0]


def _decode(piece: Piece, model: OpenClipSettings, rows_per_block: int, _earlier: None) -> Iterator[Block | None]:
    """The blocks of a shard, then what a later shard waits for."""
    yield from decode_shard(piece, model, rows_per_block)
    yield None


# Neither takes a CPU of Ray's count: where training has them all, or a lost node had the last, they would never run.
# Deals are few at a time; of the shards, each waits for another one, `decoders` before it.
_DEAL = ray.remote(num_cpus=0)(_deal)
_DECODE = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_decode)
"""A generator with a known number of results stores each as it comes: the shard is never in memory whole."""
