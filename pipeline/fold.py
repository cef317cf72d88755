"""Looking at every shard once and merging what was seen: counts, ranges and sums that are small beside the rows."""

from collections.abc import Callable
from functools import partial, reduce
from typing import TypeVar

import pyarrow as pa

from pipeline.run import Plan
from pipeline.spread import spread
from pipeline.storage import Store
from pipeline.units import Unit, read_unit

Seen = TypeVar("Seen")


def fold(plan: Plan, look: Callable[[pa.Table], Seen], merge: Callable[[Seen, Seen], Seen]) -> Seen:
    """What `look` sees in all the tables of a plan, merged.

    Each worker holds one shard's table at a time and merges on the way, so the driver gets one answer from each.

    Args:
        plan: whose tables are looked at.
        look: picklable; must give an answer for a table without rows, too.
        merge: exact, associative and commutative, so that neither the number nor the order of the workers matters.
    """
    work = partial(_look_at_all, plan.run.store, look, merge)
    return reduce(merge, spread(work, plan.groups(plan.run.workers), workers=plan.run.workers))


def _look_at_all(
    store: Store, look: Callable[[pa.Table], Seen], merge: Callable[[Seen, Seen], Seen], units: list[Unit]
) -> Seen:
    return reduce(merge, (look(read_unit(store, unit)[0]) for unit in units))
