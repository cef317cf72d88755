"""Members of a cluster ranked among themselves: the hardest, the easiest, or in random order; the first ones stay.

Legend: N rows of a table, n those of them that have a cluster, K clusters.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.hashing import keyed_hash
from operators.selection import Cutoffs, Keys, cutoff_value, is_kept, order_key
from operators.uids import split_uids
from pipeline.columns import present, scatter, uid_rows
from pipeline.run import Plan
from pipeline.selection import plan_cutoffs
from pipeline.units import Verdicts

Members = Literal["hard", "easy", "random", "stratified"]
Ranker = Callable[[pa.Table], Keys]


def keys(members: Members, seed: int, title: str, table: pa.Table) -> Keys:
    """Ranks the rows that have a cluster among its members; ties go to the lowest uid."""
    table = table.filter(table["cluster"].is_valid())
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    cluster_N = table["cluster"].to_numpy()
    if members == "random":
        return Keys(cluster_N, keyed_hash(high_N, low_N, seed, title), high_N, low_N)
    similarity_N = table["similarity"].to_numpy()
    return Keys(cluster_N, order_key(similarity_N, descending=members == "easy"), high_N, low_N)


def make_judge(plan: Plan, title: str, quota_K: NDArray[np.int64], members: Members) -> Callable[[pa.Table], Verdicts]:
    """The function that judges each table, once the cut-offs of all clusters are found."""
    rank = partial(keys, members, plan.run.seed, title)
    cutoffs = plan_cutoffs(plan, rank, quota_K)
    return partial(judge, rank, cutoffs, quota_K, members)


def judge(rank: Ranker, cutoffs: Cutoffs, quota_K: NDArray[np.int64], members: Members, table: pa.Table) -> Verdicts:
    """Keeps the rows that are within their cluster's quota."""
    ranked = rank(table)
    threshold_K = 1.0 - cutoff_value(cutoffs, descending=members == "easy")
    threshold_n = np.full(len(ranked.group_N), np.nan) if members == "random" else threshold_K[ranked.group_N]
    facts = {"quota": pa.array(quota_K[ranked.group_N]), "threshold": pa.array(threshold_n, from_pandas=True)}
    return verdicts(table, is_kept(cutoffs, *ranked), facts)


def verdicts(table: pa.Table, kept_n: NDArray[np.bool_], facts: dict[str, pa.Array]) -> Verdicts:
    """The verdicts on a table of which some rows have a cluster; the others are dropped as `no_embedding`.

    Args:
        table: columns `cluster` and `similarity`.
        kept_n: of the rows that have a cluster.
        facts: details of these rows.
    """
    present_N = present(table["cluster"])
    kept_N = np.zeros(table.num_rows, dtype=bool)
    kept_N[present_N] = kept_n
    columns = {
        "cluster": table["cluster"].combine_chunks(),
        "distance": pa.array(1.0 - table["similarity"].to_numpy(zero_copy_only=False), from_pandas=True),
    }
    columns |= {name: scatter(values, present_N) for name, values in facts.items()}
    why = np.where(present_N, "over_quota", "no_embedding").astype(object)
    details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return Verdicts(kept_N, pa.array(why, pa.string(), mask=kept_N), details)
