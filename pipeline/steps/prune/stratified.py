"""Members of a cluster drawn in equal numbers from equal ranges of similarity: neither typical nor odd ones alone.

Each cluster's range of similarities is cut into `bins` equal ones; its quota is divided over them as evenly as their
sizes allow (`operators.quotas.water_fill`); inside a bin, rows are drawn by their uid. From studies of deduplication on
small images, where common, diverse and stratified members are compared: here `easy`, `hard` and `stratified`.

Legend: N rows that have a cluster, K clusters, B bins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.hashing import keyed_hash
from operators.quotas import water_fill
from operators.selection import Cutoffs, Keys, is_kept
from operators.strata import stratum
from operators.uids import split_uids
from pipeline.columns import uid_rows
from pipeline.fold import fold
from pipeline.run import Plan
from pipeline.selection import plan_cutoffs
from pipeline.steps.prune.ranked import verdicts
from pipeline.units import Verdicts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """The ranges of all clusters: between the similarities of their least and most similar members."""

    low_K: Floats
    high_K: Floats
    count: int

    def of(self, table: pa.Table) -> NDArray[np.int32]:
        """The bin of each row, counted through all clusters: cluster x B + bin."""
        cluster_N, similarity_N = table["cluster"].to_numpy(), table["similarity"].to_numpy()
        bin_N = stratum(similarity_N, self.low_K[cluster_N], self.high_K[cluster_N], self.count)
        group_N: NDArray[np.int32] = (cluster_N.astype(np.int64) * self.count + bin_N).astype(np.int32)
        return group_N

    @property
    def total(self) -> int:
        """Bins of all clusters."""
        return self.count * len(self.low_K)


def make_judge(plan: Plan, title: str, quota_K: Ints, count: int) -> Callable[[pa.Table], Verdicts]:
    """The function that judges each table, once bins, their quotas and their cut-offs are found."""
    bins = Bins(*fold(plan, partial(find_ranges, len(quota_K)), widen), count)
    size_KB = fold(plan, partial(count_rows, bins), np.add).reshape(-1, count)
    quota_KB = water_fill(size_KB, quota_K)
    rank = partial(keys, bins, plan.run.seed, title)
    cutoffs = plan_cutoffs(plan, rank, quota_KB.reshape(-1))
    return partial(judge, rank, cutoffs, quota_KB)


def find_ranges(num_clusters: int, table: pa.Table) -> tuple[Floats, Floats]:
    """The lowest and highest similarity of each cluster's members in one table; infinities where it has none."""
    table = table.filter(table["cluster"].is_valid())
    cluster_N, similarity_N = table["cluster"].to_numpy(), table["similarity"].to_numpy()
    low_K, high_K = np.full(num_clusters, np.inf), np.full(num_clusters, -np.inf)
    np.minimum.at(low_K, cluster_N, similarity_N)
    np.maximum.at(high_K, cluster_N, similarity_N)
    return low_K, high_K


def widen(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """The ranges of both."""
    return np.minimum(a[0], b[0]), np.maximum(a[1], b[1])


def count_rows(bins: Bins, table: pa.Table) -> Ints:
    """How many rows of a table lie in each bin."""
    return np.bincount(bins.of(table.filter(table["cluster"].is_valid())), minlength=bins.total)


def keys(bins: Bins, seed: int, title: str, table: pa.Table) -> Keys:
    """Ranks the rows that have a cluster in random order among those of their bin."""
    table = table.filter(table["cluster"].is_valid())
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    return Keys(bins.of(table), keyed_hash(high_N, low_N, seed, title), high_N, low_N)


def judge(rank: Callable[[pa.Table], Keys], cutoffs: Cutoffs, quota_KB: Ints, table: pa.Table) -> Verdicts:
    """Keeps the rows that were drawn of each bin."""
    drawn = rank(table)
    cluster_N, bin_N = np.divmod(drawn.group_N, quota_KB.shape[1])
    facts = {
        "quota": pa.array(quota_KB.sum(axis=1)[cluster_N]),
        "bin": pa.array(bin_N.astype(np.int32)),
        "bin_quota": pa.array(quota_KB[cluster_N, bin_N]),
    }
    return verdicts(table, is_kept(cutoffs, *drawn), facts)
