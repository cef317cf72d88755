"""One actor that decides what is decoded and dealt when; pixels go from tasks to workers past it.

It outlives the workers, so what is decoded stays so when a lost worker is replaced. It is told how many workers there
are and where to begin, and hands out references; the samples of a step depend on neither.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import ray

from operators.encoders.settings import OpenClipSettings
from operators.training.ordering import Order, Visits, Window
from pipeline.training.dealing import Dealing, Hand, Picks, deal, share
from pipeline.training.decoding import Block, Failed, decode_piece, num_blocks
from pipeline.training.examples import Piece

DEAL_SAMPLES = 1024
"""Samples of a deal, at least: several small batches share the cost of a task."""
LOOKAHEAD = 2
"""Deals that are made before anyone asks."""
_GLANCE_SECONDS = 1.0
"""How long to look for what has failed: an end that another process owns takes a moment to be seen."""


class Decoded(NamedTuple):
    """A shard that is decoded, or is being so.

    Attributes:
        blocks: references to its blocks.
        end: reference to None once it is done; to what went wrong where it could not be.
    """

    blocks: tuple[Any, ...]
    end: Any


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
    blocks: Mapping[int, Decoded] = field(default_factory=dict)

    @property
    def steps_per_deal(self) -> int:
        """Batches that are dealt together."""
        return max(1, DEAL_SAMPLES // self.batch_size)


class Feeder:
    """Hands out references to what each worker trains on."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._dealing = ray.put(feed.dealing)
        self._blocks: dict[int, Decoded] = dict(feed.blocks)
        self._portion_P = np.asarray([piece.portion for piece in feed.pieces])
        self._ends = first_ends(feed.decoders)
        self._attempt = 0
        self._left: Visits

    def start(self, workers: int, first_step: int) -> int:
        """Begins to deal at a step, forgetting earlier deals and whatever could not be decoded.

        Returns:
            the number of the attempt, for `take`.
        """
        feed = self._feed
        if self._attempt:
            self._forget_failed()
        self._attempt += 1
        self._workers = workers
        self._next_step = first_step
        self._deals: dict[int, list[Any]] = {}
        self._dealt = 0
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
        while self._dealt <= number + LOOKAHEAD and self._next_step < self._feed.num_steps:
            self._deals[self._dealt] = self._deal()
            self._dealt += 1
        hands = self._deals[number]
        hand, hands[rank] = hands[rank], None
        if all(hand is None for hand in hands):
            del self._deals[number]
        return [hand]

    def _deal(self) -> list[Any]:
        feed = self._feed
        steps = min(feed.steps_per_deal, feed.num_steps - self._next_step)
        self._next_step += steps
        visits = self._visits(steps * feed.batch_size)
        hands = []
        for places_N in share(len(visits.row_N), feed.batch_size, self._workers):
            picks, blocks = self._picks(visits.part(places_N))
            hands.append(_DEAL.remote(self._dealing, picks, *blocks))
        self._release()
        return hands

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
                self._blocks[index] = start_decoding(feed, feed.pieces[index], self._ends)

    def _forget_failed(self) -> None:
        self._ends = first_ends(self._feed.decoders)
        for index in failed(self._blocks, _GLANCE_SECONDS):
            del self._blocks[index]

    def _picks(self, visits: Visits) -> tuple[Picks, list[Any]]:
        """Where the samples lie among the blocks that hold them, and those blocks."""
        feed = self._feed
        place_N = visits.row_N // feed.rows_per_block
        places_M2, block_N = np.unique(np.stack([visits.piece_N, place_N], axis=1), axis=0, return_inverse=True)
        picks = Picks(
            block_N=block_N.reshape(-1),
            row_N=visits.row_N % feed.rows_per_block,
            portion_N=self._portion_P[visits.piece_N],
            epoch_N=visits.epoch_N,
            repeat_N=visits.repeat_N,
        )
        return picks, [self._blocks[piece].blocks[place] for piece, place in places_M2.tolist()]

    def _release(self) -> None:
        if not self._feed.keep_all:
            self._blocks = {piece: decoded for piece, decoded in self._blocks.items() if piece in self._pieces}


def first_ends(decoders: int) -> deque[Any]:
    """The ends of shards for later ones to wait for; so many begin at once."""
    return deque([None] * decoders, maxlen=decoders)


def start_decoding(feed: Feed, piece: Piece, ends: deque[Any]) -> Decoded:
    """Has a shard decoded once an earlier one is.

    Args:
        feed: that it is a piece of.
        piece: the shard.
        ends: of the shards before it: it waits for the first of them, and its own is added.
    """
    task = _DECODE.options(num_returns=num_blocks(piece, feed.rows_per_block) + 1)
    *blocks, end = task.remote(piece, feed.model, feed.rows_per_block, ends[0])
    ends.append(end)
    return Decoded(tuple(blocks), end)


def failed(shards: Mapping[Any, Decoded], seconds: float = 0) -> list[Any]:
    """The keys of those shards that could not be decoded, as far as that is known within so many seconds."""
    ends = list({decoded.end for decoded in shards.values()})
    known = set(ray.wait(ends, num_returns=len(ends), timeout=seconds)[0]) if ends else set()
    return [key for key, decoded in shards.items() if decoded.end in known and not _is_sound(decoded.end)]


def _is_sound(end: Any) -> bool:
    try:
        return ray.get(end) is None
    except ray.exceptions.RayError:  # its process was lost more often than Ray starts one again
        return False


def _deal(dealing: Dealing, picks: Picks, *blocks: Block | Failed) -> Hand:
    return deal(dealing, picks, *_sound(blocks))


def _sound(blocks: Iterable[Block | Failed]) -> Iterator[Block]:
    for block in blocks:
        if isinstance(block, Failed):
            raise block.error
        yield block


def _decode(
    piece: Piece, model: OpenClipSettings, rows_per_block: int, _earlier: Failed | None
) -> Iterator[Block | Failed | None]:
    yield from decode_piece(piece, model, rows_per_block)


# Neither takes a CPU of Ray's count: where training has them all, or a lost node had the last, they would never run.
# Deals are few at a time; of the shards, each waits for another one, `decoders` before it.
_DEAL = ray.remote(num_cpus=0)(_deal)
_DECODE = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_decode)
"""A generator with a known number of results stores each as it comes: the shard is never in memory whole."""
