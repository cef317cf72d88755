"""Rows ranked by their difficulty within their group, how many of each group stay, and the verdicts on them.

Legend: N rows of a table, n those that lack nothing, G groups, P prototypes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.quotas import balance_floor, lower_bounds
from operators.selection import Cutoffs, Keys, cutoff_value, is_kept, order_key
from operators.uids import split_uids
from pipeline.columns import present, scatter, uid_rows
from pipeline.fold import fold
from pipeline.run import Plan
from pipeline.selection import plan_cutoffs
from pipeline.units import Verdicts

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ranking:
    """Ranks rows within their groups.

    Attributes:
        column: what ranks them.
        hardest: whether the highest values come first.
        num_groups: G.
    """

    column: str
    hardest: bool
    num_groups: int

    def keys(self, table: pa.Table) -> Keys:
        """The keys of the rows that lack nothing; ties go to the lowest uid."""
        table = table.filter(table["group"].is_valid())
        high_n, low_n = split_uids(uid_rows(table["uid"]))
        return Keys(table["group"].to_numpy(), order_key(table[self.column].to_numpy(), self.hardest), high_n, low_n)

    def count(self, table: pa.Table) -> Ints:
        """Rows of each group in a table, as `fold` adds them up."""
        return np.bincount(table["group"].drop_null().to_numpy(), minlength=self.num_groups)


def balanced_quotas(plan: Plan, ranking: Ranking, size_G: Ints, keep: int, class_balance: float) -> Ints:
    """How many of each group are among the first `keep` rows of all, when each group keeps a fair number at least.

    Each group's first `balance_floor` rows are safe (all of a smaller group's); the other places go to the first of all
    other rows together. Sorscher et al. 2022, arXiv 2206.14486, where class_balance is 0.5.

    Raises:
        ConfigError: more are to be kept than there are.
    """
    lower_G = lower_bounds(size_G, keep, balance_floor(keep, len(size_G), class_balance))
    safe = plan_cutoffs(plan, ranking.keys, lower_G)
    rest = partial(unsafe_keys, ranking, safe)
    others = plan_cutoffs(plan, rest, np.array([keep - lower_G.sum()]))
    others_G: Ints = fold(plan, partial(count_others, ranking, safe, others), np.add)
    return lower_G + others_G


def unsafe_keys(ranking: Ranking, safe: Cutoffs, table: pa.Table) -> Keys:
    """The keys of the rows that their group's floor does not keep, as one group."""
    keys = ranking.keys(table)
    keys = keys.take(~is_kept(safe, *keys))
    return keys._replace(group_N=np.zeros_like(keys.group_N))


def count_others(ranking: Ranking, safe: Cutoffs, others: Cutoffs, table: pa.Table) -> Ints:
    """How many rows of each group are kept beyond their group's floor."""
    keys = ranking.keys(table)
    keys = keys.take(~is_kept(safe, *keys))
    kept_n = is_kept(others, np.zeros_like(keys.group_N), *keys[1:])
    return np.bincount(keys.group_N[kept_n], minlength=ranking.num_groups)


def count_prototypes(ranking: Ranking, cutoffs: Cutoffs, num_prototypes: int, table: pa.Table) -> Ints:
    """Counts_P2: the rows of each prototype, and how many of them are kept."""
    own_n = table["prototype"].drop_null().to_numpy()
    kept_n = is_kept(cutoffs, *ranking.keys(table))
    counts = [np.bincount(rows_n, minlength=num_prototypes) for rows_n in (own_n, own_n[kept_n])]
    return np.stack(counts, axis=1)


@dataclass(frozen=True)
class Judge:
    """Keeps the first rows of each group.

    Attributes:
        ranking: of the rows.
        cutoffs: the last row kept of each group.
        quota_G: int64, rows kept of each group.
        details: name of a detail -> the column that it is, and the names of its ids where it has any.
    """

    ranking: Ranking
    cutoffs: Cutoffs
    quota_G: Ints
    details: Mapping[str, tuple[str, pa.Array | None]]

    def __call__(self, table: pa.Table) -> Verdicts:
        """The verdicts on a table; a row that lacks something is dropped for that reason."""
        has_N = present(table["group"])
        keys = self.ranking.keys(table)
        kept_N = np.zeros(table.num_rows, dtype=bool)
        kept_N[has_N] = is_kept(self.cutoffs, *keys)
        threshold_G = cutoff_value(self.cutoffs, self.ranking.hardest)
        columns = {
            name: table[column].combine_chunks() if names is None else names.take(table[column].combine_chunks())
            for name, (column, names) in self.details.items()
        }
        columns |= {
            "difficulty": table[self.ranking.column].combine_chunks(),
            "threshold": scatter(pa.array(threshold_G[keys.group_N], from_pandas=True), has_N),
            "quota": scatter(pa.array(self.quota_G[keys.group_N]), has_N),
        }
        lacks = table["lacks"].combine_chunks()
        why = np.where(has_N, "over_quota", lacks.to_numpy(zero_copy_only=False)).astype(object)
        details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
        return Verdicts(kept_N, pa.array(why, pa.string(), mask=kept_N), details)
