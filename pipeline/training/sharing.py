"""Shards that several trainings want, decoded once: for trainings on the same samples, side by side or in turn."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline.training.examples import Piece
from pipeline.training.feeder import Decoded, Feed, failed, first_ends, start_decoding


class SharedBlocks:
    """What trainings of one driver have decoded; may be used by its threads. Blocks go with the last who uses them."""

    def __init__(self, decoders: int) -> None:
        """Holds nothing yet; so many shards are decoded at a time, whoever wants them."""
        self._decoders = decoders
        self._ends = first_ends(decoders)
        self._blocks: dict[Any, Decoded] = {}
        self._users: Counter[Any] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, feed: Feed) -> Iterator[Feed]:
        """The same feed, with everything decoded or about to be; as it is where not all of it would be kept."""
        if not feed.keep_all:
            yield feed
            return
        keys = [_key(feed, piece) for piece in feed.pieces]
        with self._lock:
            for key in failed({key: self._blocks[key] for key in keys if key in self._blocks}):
                self._ends = first_ends(self._decoders)
                del self._blocks[key]
            for key, piece in zip(keys, feed.pieces, strict=True):
                if key not in self._blocks:
                    self._blocks[key] = start_decoding(feed, piece, self._ends)
            blocks = {index: self._blocks[key] for index, key in enumerate(keys)}
            self._users.update(set(keys))
        try:
            yield replace(feed, blocks=blocks)
        finally:
            with self._lock:
                for key in set(keys):
                    self._users[key] -= 1
                    if not self._users[key]:
                        del self._users[key], self._blocks[key]


def _key(feed: Feed, piece: Piece) -> Any:
    """All that the blocks of a shard depend on."""
    return piece.store.url, piece.samples, piece.verdicts, piece.labels, feed.model, feed.rows_per_block
