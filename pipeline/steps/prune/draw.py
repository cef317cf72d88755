"""`prune` with `method: random`: samples drawn without looking at them, the baseline of every other method.

Reads `samples`. Verdict reason: `not_drawn`. Details: `draw`, uniform in [0, 1), and `threshold`, that of the last row
drawn. A row's draw depends on the run's seed, the step's name and its uid alone. Where verdicts of an
earlier run stand, what they leave of the number to keep is drawn of the new rows.
"""

from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from operators.hashing import keyed_hash
from operators.selection import Cutoffs, Keys, is_kept, unit_values
from operators.uids import split_uids
from pipeline.artifact import Artifact
from pipeline.columns import uid_rows
from pipeline.run import Read, Run
from pipeline.selection import plan_cutoffs
from pipeline.steps.base import reasons
from pipeline.steps.prune.base import Prune
from pipeline.units import Verdicts


class RandomPrune(Prune):
    """Settings of the method: how much to keep."""

    method: Literal["random"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check_one_target()
        return self

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        plan = run.plan(self.title, self.identity(run), [Read(run.samples, {"uid": "uid"})], reduces=True)
        if published := plan.published:
            return published
        keep, keys = self.rows_to_keep(run), partial(draw_keys, run.seed, self.title)
        if not plan.new.units:
            return plan.publish(())
        stood = [part.counts for part in plan.standing.values()]
        num_new = run.num_entering - sum(counts["in"] for counts in stood)
        num_drawn = min(max(keep - sum(counts["kept"] for counts in stood), 0), num_new)
        cutoffs = plan_cutoffs(plan.new, keys, np.array([num_drawn], dtype=np.int64))
        return plan.map_verdicts(partial(judge, keys, cutoffs))


def draw_keys(seed: int, title: str, table: pa.Table) -> Keys:
    """Ranks rows by the hash of their uid."""
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    return Keys(np.zeros(len(high_N), np.int32), keyed_hash(high_N, low_N, seed, title), high_N, low_N)


def judge(keys: Any, cutoffs: Cutoffs, table: pa.Table) -> Verdicts:
    """Keeps the rows that were drawn."""
    drawn = keys(table)
    kept_N = is_kept(cutoffs, *drawn)
    draw_N = unit_values(drawn.value_N)
    threshold_N = np.full(len(draw_N), unit_values(cutoffs.last_G3[0, 0]))
    details = pa.StructArray.from_arrays([pa.array(draw_N), pa.array(threshold_N)], names=["draw", "threshold"])
    return Verdicts(kept_N, reasons(kept_N, "not_drawn"), details)
