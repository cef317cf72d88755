"""A worker's side of the feed: hands are fetched by a thread while the worker trains, and waiting is counted."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from pipeline import metrics
from pipeline.training.dealing import Hand

_AHEAD = 2
"""Hands that wait to be trained on."""
_POLL_SECONDS = 0.5


class Batches:
    """The worker's share of every batch from a step on, in order; a context manager.

    Attributes:
        waited: seconds that the worker has waited for data.
    """

    def __init__(
        self, feeder: Any, attempt: int, rank: int, steps: int, *, local_size: int, steps_per_deal: int
    ) -> None:
        self.waited = 0.0
        self._feeder = feeder
        self._attempt = attempt
        self._rank = rank
        self._steps = steps
        self._local_size = local_size
        self._deals = -(-steps // steps_per_deal)
        self._queue: queue.Queue[Hand | BaseException] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fetch, name="batches", daemon=True)

    def __iter__(self) -> Iterator[Hand]:
        """Yields one hand for each step, of `local_size` pairs."""
        left = self._steps
        while left:
            started = time.perf_counter()
            hand = self._queue.get()
            waited = time.perf_counter() - started
            self.waited += waited
            metrics.count(metrics.DATA_WAIT, waited)
            if isinstance(hand, BaseException):
                raise hand
            for start in range(0, len(hand.pixels_NHWC), self._local_size):
                if not left:  # a deal may go on beyond what is asked for
                    return
                left -= 1
                part = slice(start, start + self._local_size)
                yield Hand(hand.pixels_NHWC[part], hand.tokens_NL[part], hand.uids_N2[part])

    def __enter__(self) -> "Batches":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()  # not joined: it may be waiting for what a lost node will never send

    def _fetch(self) -> None:
        try:
            for number in range(self._deals):
                (hand,) = ray.get(self._feeder.take.remote(self._attempt, self._rank, number))
                self._put(ray.get(hand))
        except BaseException as error:
            self._put(error)

    def _put(self, item: Hand | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
