"""Shards that several trainings want, decoded once: for trainings on the same samples, side by side or in turn."""

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline.training.examples import Piece
from pipeline.training.feeder import Feed, decode_piece


class SharedBlocks:
    """What trainings of one driver have decoded; may be used by its threads. Blocks go with the last who uses them.

    Attributes:
        decoders: shards that are decoded at a time, whoever wants them.
    """

    def __init__(self, decoders: int) -> None:
        self._done: deque[Any] = deque([None] * decoders, maxlen=decoders)
        self._blocks: dict[Any, list[Any]] = {}
        self._users: Counter[Any] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Tells the trainings of other threads to end: an interrupt reaches the main thread only."""
        self._stopped.set()

    def check(self) -> None:
        """Raises KeyboardInterrupt once the trainings are to end."""
        if self._stopped.is_set():
            raise KeyboardInterrupt

    @contextmanager
    def lent(self, feed: Feed) -> Iterator[Feed]:
        """The same feed, with everything decoded or about to be; as it is where not all of it would be kept."""
        if not feed.keep_all:
            yield feed
            return
        keys = [_key(feed, piece) for piece in feed.pieces]
        with self._lock:
            self._users.update(keys)
            for key, piece in zip(keys, feed.pieces, strict=True):
                if key not in self._blocks:
                    self._blocks[key], done = decode_piece(feed, piece, self._done[0])
                    self._done.append(done)
            blocks = {index: tuple(self._blocks[key]) for index, key in enumerate(keys)}
        try:
            yield replace(feed, blocks=blocks)
        finally:
            with self._lock:
                self._users.subtract(keys)
                for key in keys:
                    if not self._users[key]:
                        del self._users[key], self._blocks[key]


def _key(feed: Feed, piece: Piece) -> Any:
    """All that the blocks of a shard depend on."""
    return piece.store.url, piece.samples, piece.verdicts, piece.labels, feed.model, feed.rows_per_block
