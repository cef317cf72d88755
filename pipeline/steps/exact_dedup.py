"""`exact_dedup`: of samples whose encoded images are the same bytes, the one with the lowest uid stays.

Reads `samples`. Verdict reason `exact_duplicate`; details: `duplicate_of`, the uid that stays. A sample that
stayed when an earlier run, whose verdicts stand, looked at it comes before all that are new.
"""

from functools import partial
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from operators.uids import join_uids
from pipeline.artifact import Artifact
from pipeline.findings import Findings, positions_of
from pipeline.run import Read, Run
from pipeline.steps.base import Stands, Step, reasons
from pipeline.uniqueness import find_repeats
from pipeline.units import Verdicts


class ExactDedup(Step):
    """Settings of the step: none."""

    stands: ClassVar[Stands] = "always"

    step: Literal["exact_dedup"]

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        columns = {name: name for name in ("uid", "shard", "row", "image_hash")}
        plan = run.plan(self.title, self.identity(run), [Read(run.samples, columns)], reduces=True)
        if published := plan.published:
            return published
        repeats = find_repeats(plan, "image_hash", ("high", "low"))
        return plan.map_verdicts(partial(judge, repeats))


def judge(repeats: Findings, table: pa.Table) -> Verdicts:
    """Drops the rows that repeat an image."""
    kept_N = np.ones(table.num_rows, dtype=bool)
    duplicate_of = np.full(table.num_rows, None, dtype=object)
    if table.num_rows:
        positions, rows = positions_of(table, repeats.of(table["shard"][0].as_py()))
        kept_N[positions] = False
        firsts = join_uids(rows["first_high"].to_numpy(), rows["first_low"].to_numpy()).hex()
        duplicate_of[positions] = [firsts[i : i + 32] for i in range(0, len(firsts), 32)]
    details = pa.StructArray.from_arrays([pa.array(duplicate_of, pa.string())], names=["duplicate_of"])
    return Verdicts(kept_N, reasons(kept_N, "exact_duplicate"), details)
