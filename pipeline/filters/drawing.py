"""Which rows of a pool or a trusted set a filter learns from: all that are usable, or exactly n drawn by their uids.

Legend: N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import add

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.hashing import keyed_hash
from operators.selection import Cutoffs, Keys, is_kept
from operators.uids import split_uids
from pipeline.columns import uid_rows
from pipeline.fold import fold
from pipeline.run import Plan
from pipeline.selection import plan_cutoffs

Usable = Callable[[pa.Table], NDArray[np.bool_]]
"""Which rows of a table can be learnt from; picklable."""


@dataclass(frozen=True)
class Drawn:
    """A rule that says of each row alone whether it was drawn.

    Attributes:
        seed, label: of the draw.
        usable: rows that could be.
        count: rows that are.
        last: the last of them; None where all usable rows are drawn.
    """

    seed: int
    label: str
    usable: Usable
    count: int = 0
    last: Cutoffs | None = None

    def of(self, table: pa.Table) -> NDArray[np.bool_]:
        """Bool_N: the rows of a table, which has a column `uid`, that were drawn."""
        drawn_N = self.usable(table).copy()
        if self.last is not None:
            drawn_N[drawn_N] = is_kept(self.last, *self.keys(table))
        return drawn_N

    def keys(self, table: pa.Table) -> Keys:
        """The order of the usable rows."""
        high_M, low_M = split_uids(uid_rows(table["uid"])[self.usable(table)])
        return Keys(np.zeros(len(high_M), np.int32), keyed_hash(high_M, low_M, self.seed, self.label), high_M, low_M)


def draw_rows(plan: Plan, label: str, usable: Usable, most: int | None = None) -> Drawn:
    """Draws rows by the hash of (seed, label, uid).

    Args:
        plan: over the rows; reads `uid` and what `usable` looks at.
        label: of the draw.
        usable: which rows can be drawn.
        most: how many to draw; all usable ones where they are fewer, or where it is None.
    """
    draw = Drawn(plan.run.seed, label, usable)
    count = fold(plan, partial(_count, usable), add)
    if most is None or count <= most:
        return Drawn(draw.seed, label, usable, count)
    last = plan_cutoffs(plan, draw.keys, np.array([most], dtype=np.int64))
    return Drawn(draw.seed, label, usable, most, last)


def _count(usable: Usable, table: pa.Table) -> int:
    return int(np.count_nonzero(usable(table)))
