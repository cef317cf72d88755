"""The actor of a distributed k-means: one part of the embeddings, and what is asked of it.

Whatever it holds is a function of its loader, its settings and the arguments of the call, so an actor that was lost
starts again, loads its rows and answers the same.

Legend: N rows of one actor, B rows of a block, M some rows, K clusters, C candidates, D dimensions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from operators.kmeans import Part, Sums, exact_search, initial_keys, lowest_keys, merge_sums
from operators.seeding import Oversampling, round_hash, spread_out
from operators.selection import Cutoffs, Search, Summary, is_kept
from operators.two_level import group_search
from pipeline.clustering import KMeansSettings
from pipeline.kmeans_keys import Loaded, Loader, draw_keys
from pipeline.selection import KeyHolder

Drawn = tuple[NDArray[np.uint64], NDArray[np.float16]]
"""key_M3 (`operators.kmeans.initial_keys`) and x_MD of some rows."""


@dataclass(frozen=True)
class Setup:
    """What all actors of a fit are told.

    Attributes:
        settings: how to cluster, with nothing left open.
        seed: of every draw.
        threads: of each actor.
        on_gpus: whether each has a GPU.
        sample: which rows to fit on; None for all of them.
    """

    settings: KMeansSettings
    seed: int
    threads: int
    on_gpus: bool
    sample: Cutoffs | None

    @property
    def device(self) -> str:
        """Where this process screens: on its GPU, unless that is one that Ray counts and CUDA cannot use."""
        return "cuda" if self.on_gpus and torch.cuda.is_available() else "cpu"

    def part(self, x_ND: NDArray[np.float16]) -> Part:
        """Rows, ready to be assigned as the settings say."""
        search = group_search if self.settings.two_level else exact_search
        return Part(x_ND, self.settings.metric, threads=self.threads, device=self.device, search=search)


class Worker:
    """One part of the embeddings. Loads at its first task, so a loader's error arrives as that error."""

    def __init__(self, loader: Loader, setup: Setup) -> None:
        torch.set_num_threads(setup.threads)
        self._loader, self._setup = loader, setup

    @cached_property
    def _loaded(self) -> Loaded:
        return gather(self._loader(), self._setup)

    @cached_property
    def _part(self) -> Part:
        return self._setup.part(self._loaded[0])

    def num_rows(self) -> int:
        """How many rows to fit on are here. It needs none of the keys, of which a fit that goes on has no use."""
        return len(self._loaded[0])

    def step(self, centroids_KD: NDArray[np.float64], slices: list[slice]) -> list[Sums] | Sums:
        """Exact sums under these centroids, one object for each slice of the clusters."""
        return _cut(self._part.step(centroids_KD), slices)

    def totals(self, centroids_KD: NDArray[np.float64], slices: list[slice]) -> list[Sums] | Sums:
        """What `step` would give if all rows of the part were fitted on; they pass by, block by block."""
        blocks = (self._setup.part(x_BD).step(centroids_KD) for x_BD, _, _ in self._loader())
        return _cut(reduce(lambda *two: merge_sums(two), blocks), slices)

    # What `pipeline.selection.find_cutoffs` asks: the rows in the order of their keyed hashes.

    @cached_property
    def _keys(self) -> KeyHolder:
        return KeyHolder([lambda: draw_keys(*self._loaded[1:], self._setup.seed)], 1)

    def summarise(self) -> Summary:
        """How many rows are here, and the range of their hashes."""
        return self._keys.summarise()

    def count_digits(self, search: Search) -> NDArray[np.uint32]:
        """Counts of one round of the search."""
        return self._keys.count_digits(search)

    def last_kept(self, rule: Cutoffs) -> NDArray[np.uint64]:
        """The last hash that is within the rule here."""
        return self._keys.last_kept(rule)

    def drawn(self, rule: Cutoffs) -> Drawn:
        """Keys and rows of those that a rule keeps. It ends the search, so its keys are let go."""
        vars(self).pop("_keys", None)
        x_ND, high_N, low_N = self._loaded
        keys = draw_keys(high_N, low_N, self._setup.seed)
        kept_M = np.flatnonzero(is_kept(rule, *keys))
        return np.stack(keys[1:], axis=1)[kept_M], x_ND[kept_M]

    def num_found(self, centroids_KD: NDArray[np.float64], rule: Cutoffs) -> int:
        """How many of the rows that a rule keeps find by groups the centroid that an exact search finds."""
        rows = self._setup.part(self.drawn(rule)[1]).rows
        searches = (
            search(centroids_KD, self._setup.settings.metric, threads=self._setup.threads, device=self._setup.device)
            for search in (group_search, exact_search)
        )
        by_groups, exactly = (find(rows) for find in searches)
        return int((by_groups == exactly).sum())

    # First centroids.

    def spread_out(self, k: int, weight_C: NDArray[np.int64] | None, *drawn: Drawn) -> NDArray[np.float16]:
        """K-means++ over rows drawn from all workers: the k chosen, in order. Weights are in the order of `drawn`."""
        order_C = lowest_keys(np.concatenate([key_M3 for key_M3, _ in drawn]), sum(len(x_MD) for _, x_MD in drawn))
        _, x_CD = joined(drawn)
        return x_CD[spread_out(x_CD, k, self._setup.seed, None if weight_C is None else weight_C[order_C])]

    @cached_property
    def _oversampling(self) -> Oversampling:
        return Oversampling(self._part.rows, threads=self._setup.threads)

    def potential(self, candidates: Sequence[Any]) -> int:
        """The weights of all rows, given references to the candidates of each round so far."""
        return int(self._oversampled(candidates).weights().sum())

    def oversample(self, candidates: Sequence[Any], total: int, expected: int, number: int) -> Drawn:
        """The rows drawn in one round, given the candidates so far and the weights of all workers."""
        x_ND, high_N, low_N = self._loaded
        hash_N = round_hash(high_N, low_N, self._setup.seed, number)
        drawn_M = self._oversampled(candidates).draw(total, expected, hash_N)
        return initial_keys(high_N[drawn_M], low_N[drawn_M], self._setup.seed), x_ND[drawn_M]

    def candidate_counts(self, candidates: Sequence[Any]) -> NDArray[np.int64]:
        """How many rows here are nearest to each candidate. It ends the rounds, so what they need is let go."""
        counts_C = self._oversampled(candidates).counts()
        del self._oversampling
        return counts_C

    def _oversampled(self, candidates: Sequence[Any]) -> Oversampling:
        for reference in candidates[self._oversampling.rounds :]:
            self._oversampling.add(ray.get(reference)[1])
        return self._oversampling


def joined(drawn: Iterable[Drawn]) -> Drawn:
    """Rows from several workers, in the order of their keys."""
    key_M3, x_MD = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
    order_M = lowest_keys(key_M3, len(key_M3))
    return key_M3[order_M], x_MD[order_M]


def gather(blocks: Iterable[Loaded], setup: Setup) -> Loaded:
    """The rows to fit on in one array, grown in place: beside it there is never more than one block."""
    x_ND = np.empty((0, 0), dtype=np.float16)
    uids: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []
    for x_BD, high_B, low_B in blocks:
        if setup.sample:
            kept_B = is_kept(setup.sample, *draw_keys(high_B, low_B, setup.seed))
            x_BD, high_B, low_B = x_BD[kept_B], high_B[kept_B], low_B[kept_B]
        num_before = len(x_ND)
        x_ND.resize((num_before + len(x_BD), x_BD.shape[1]), refcheck=False)
        x_ND[num_before:] = x_BD
        uids.append((high_B, low_B))
    high_N, low_N = map(np.concatenate, zip(*uids, strict=True))
    return x_ND, high_N, low_N


def _cut(sums: Sums, slices: list[slice]) -> list[Sums] | Sums:
    parts = [(sums[0][clusters], sums[1][clusters]) for clusters in slices]
    return parts if len(parts) > 1 else parts[0]
