"""Scoring a pool's images with a trained filter: actors that own the network, each of which does whole shards.

Legend: N rows.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.util import ActorPool

from pipeline.filters.files import TrainedFilter
from pipeline.filters.pairs import PairReader, Pairs, has_image, has_pair
from pipeline.parts import Part
from pipeline.placement import num_actors, num_on_gpus
from pipeline.pool import Pool, Shard
from pipeline.run import Plan
from pipeline.storage import Store
from pipeline.units import Unit, attribute_unit

_ROWS_PER_ACTOR = 1_000


class Scorer(Protocol):
    """A network that scores pairs.

    Attributes:
        size: side of the images that it takes.
        needs_caption: whether pairs without a caption have no score.
    """

    size: int
    needs_caption: bool

    def score(self, pairs: Pairs) -> NDArray[np.float32]:
        """The score of each pair, NaN where it has none; it does not depend on the others."""


Build = Callable[[TrainedFilter], Scorer]
"""Loads a trained filter where it is to run; picklable."""


def score_shards(plan: Plan, trained: TrainedFilter, build: Build) -> Iterator[Part]:
    """Scores every shard of a plan and publishes the parts, as they come.

    Args:
        plan: reads `PAIR_COLUMNS`.
        trained: the filter.
        build: loads it.
    """
    run = plan.run
    gpus = num_on_gpus(run.gpus)
    rows = sum(unit.rows for unit in plan.units)
    count = min(gpus or num_actors(run.workers, 1), len(plan.units), max(1, -(-rows // _ROWS_PER_ACTOR)))
    options = {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "max_restarts": 4, "max_task_retries": 4}
    shared = ray.put(trained)
    actor = ray.remote(_ScoreShards).options(**options)
    pool = ActorPool([actor.remote(run.store, run.pool, plan.folder, build, shared) for _ in range(count)])
    yield from pool.map_unordered(_score, list(zip(plan.units, run.shards, strict=True)))


def _score(actor: Any, work: tuple[Unit, Shard]) -> Any:
    return actor.score.remote(*work)


class _ScoreShards:
    """One process of a scoring. It loads the network for the first shard that is not done yet."""

    def __init__(self, store: Store, pool: Pool, folder: str, build: Build, trained: TrainedFilter) -> None:
        self._store = store
        self._pool = pool
        self._folder = folder
        self._build = partial(build, trained)

    @cached_property
    def _scorer(self) -> Scorer:
        return self._build()

    def score(self, unit: Unit, shard: Shard) -> Part:
        """Publishes the scores of one shard, or finds them published."""
        return attribute_unit(self._store, self._folder, partial(self._scores, shard), unit)

    def _scores(self, shard: Shard, table: pa.Table) -> pa.Table:
        wanted_N = has_pair(table) if self._scorer.needs_caption else has_image(table)
        reader = PairReader(self._store, self._pool, self._scorer.size)
        scores = [self._scorer.score(pairs) for pairs in reader.batches(shard, table.filter(pa.array(wanted_N)))]
        score_N = np.full(table.num_rows, np.nan)
        score_N[wanted_N] = np.concatenate([*scores, np.empty(0, np.float32)])
        return pa.table({"score": pa.array(score_N, mask=np.isnan(score_N))})
