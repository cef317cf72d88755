"""How long and how fast a filter's network is trained. Imports no torch: a config is read without."""

import math
from dataclasses import dataclass

_WARMUP = 0.05


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        samples_seen: rows that go through it in all, rounded up to whole batches.
        batch_size: rows of each batch.
        learning_rate: at its peak, after the first 5 % of the steps; it then falls to 0 along a cosine.
        weight_decay: of matrices; vectors (biases, norms) have none.
    """

    samples_seen: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    @property
    def steps(self) -> int:
        """Updates of the network."""
        return math.ceil(self.samples_seen / self.batch_size)

    def rate(self, step: int) -> float:
        """The learning rate of an update, counted from 0."""
        warmup = math.ceil(_WARMUP * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
