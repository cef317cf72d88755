"""`unique_uid`: the step every run begins with. Rejected samples end here, and so does all but one sample of each uid.

Reads `samples`. Verdict details of `duplicate_uid`: `first_shard`, `first_row`, the sample that keeps the uid.
Only supplied uids can repeat, so a pool without any is not shuffled. A sample whose verdict stands comes before all
that are new.
"""

from functools import partial
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from operators.rejects import Reason
from pipeline.artifact import Artifact
from pipeline.columns import present
from pipeline.findings import Findings, positions_of
from pipeline.run import Read, Run
from pipeline.steps.base import Stands, Step
from pipeline.uniqueness import find_repeats
from pipeline.units import Verdicts

_DETAIL = pa.struct([("first_shard", pa.string()), ("first_row", pa.int64())])


class UniqueUid(Step):
    """Settings of the step: none."""

    stands: ClassVar[Stands] = "always"

    step: Literal["unique_uid"] = "unique_uid"

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        columns = {name: name for name in ("uid", "shard", "row", "reason")}
        plan = run.plan(self.title, self.identity(run), [Read(run.samples, columns)], reduces=True)
        if published := plan.published:
            return published
        supplied = run.samples.total("uid_supplied")
        repeats = find_repeats(plan, "uid", ("unit", "row")) if supplied else None
        return plan.map_verdicts(partial(judge, repeats), info={"uid_supplied": supplied})


def judge(repeats: Findings | None, table: pa.Table) -> Verdicts:
    """Gives every sample the reason it was rejected with, or `duplicate_uid`, or lets it pass."""
    reason = table["reason"].to_numpy(zero_copy_only=False).astype(object)
    first_shard = np.full(len(reason), None, dtype=object)
    first_row = np.full(len(reason), None, dtype=object)
    if repeats is not None and table.num_rows:
        positions, rows = positions_of(table, repeats.of(table["shard"][0].as_py()))
        reason[positions] = str(Reason.DUPLICATE_UID)
        first_shard[positions] = [repeats.shards[unit] for unit in rows["first_unit"].to_pylist()]
        first_row[positions] = rows["first_row"].to_numpy()
    details = pa.StructArray.from_arrays(
        [pa.array(first_shard, pa.string()), pa.array(first_row, pa.int64())], fields=list(_DETAIL)
    )
    reasons = pa.array(reason, pa.string())
    return Verdicts(~present(reasons), reasons, details)
