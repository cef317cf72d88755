"""What the filters that look at images themselves have in common: a network, trained in one task, scoring in actors.

Legend: N samples.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from operators.errors import InputError
from operators.filters.recipe import Recipe
from pipeline.artifact import Artifact
from pipeline.filters.files import TrainedFilter
from pipeline.filters.pairs import PAIR_COLUMNS, Pairs
from pipeline.filters.scoring import Build, score_shards
from pipeline.filters.training import Effort, Wanted, train
from pipeline.placement import check_threads
from pipeline.run import Plan, Read, Run
from pipeline.steps.learned import Learned


class NetworkFilter(Learned):
    """Settings of the training: those of `Learned`, and these.

    Attributes:
        samples_seen: images that go through the network in training.
        batch_size: of an update.
        learning_rate: at its peak; it warms up over 5 % of the updates, then falls along a cosine.
        weight_decay: of matrices.
        threads: of the training, on a CPU. The last bits of the network depend on it, so it is no matter of
            `resources`.
    """

    looks_at_images: ClassVar[bool] = True

    samples_seen: int = Field(default=200_000, ge=1)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    threads: int = Field(default=1, ge=1)

    @property
    def recipe(self) -> Recipe:
        """The settings as the training takes them."""
        return Recipe(self.samples_seen, self.batch_size, self.learning_rate, self.weight_decay)

    def check(self) -> None:
        """Looks at the trusted set, which must have images, or reads the trained filter."""
        for source in self.trusted or ():
            if not source.has_images:
                raise InputError(f"{self.title}.trusted must be of a format with images, got {source.format}")
        super().check()

    def run(self, run: Run) -> Artifact:
        """Finds or makes the scores. Raises InputError where the pool has no image at all."""
        if not any(source.has_images for source in run.pool.sources):
            raise InputError(f"{self.title} must be used with a pool of images, got {run.pool.sources[0].format}")
        return super().run(run)

    def score_reads(self, run: Run) -> Sequence[Read]:
        """What is known of the samples; their images are read where they are scored."""
        return [Read(run.samples, PAIR_COLUMNS)]

    def score(self, plan: Plan, trained: TrainedFilter, info: Mapping[str, Any]) -> Artifact:
        """Scores the images of every shard."""
        return plan.publish(score_shards(plan, trained, self.loader), info)

    def train_on(self, run: Run, title: str, sets: Sequence[Wanted]) -> bytes:
        """Trains the network on what is wanted of each set, and gives its file."""
        check_threads(self.threads, f"{self.title}.threads")
        effort = Effort(self.threads, self.recipe.steps, self.batch_size)
        return train(run, title, partial(self.learn, run.seed), sets, effort)

    @property
    @abstractmethod
    def loader(self) -> Build:
        """What loads the trained network where it is to run."""

    @abstractmethod
    def learn(self, seed: int, sets: Sequence[Pairs]) -> Iterator[float | bytes]:
        """Trains the network on sets of pairs: yields the loss of each update, then the filter's file."""


def last_loss(losses: Sequence[float]) -> float:
    """The mean loss of the last tenth of a training, in which it hardly moves."""
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))
