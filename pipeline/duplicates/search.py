"""Finding the duplicates of a pool: rows into bins, bins decided, what was found brought home."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.duplicates import Groups, open_block, settle
from operators.near_pairs import screen
from pipeline.duplicates.rows import FOUND, REPORT, Job, Results, group_sizes, produce, split_blocks
from pipeline.duplicates.turns import decide_in_turns
from pipeline.findings import Findings, bring_home
from pipeline.run import Plan
from pipeline.shuffle import PARTITION, shuffle


@dataclass(frozen=True)
class Duplicates:
    """What a search found.

    Attributes:
        findings: the new rows that go, by shard.
        groups: the files that tell of groups.
        removed: how many new rows go at each epsilon.
        sizes: how many groups have 2 to 3, 4 to 7, 8 to 15, ... members.
    """

    findings: Findings
    groups: Sequence[str]
    removed: Sequence[int]
    sizes: Sequence[int]


def find_duplicates(plan: Plan, job: Job) -> Duplicates:
    """Finds the rows that go.

    Args:
        plan: reads `uid`, `row`, `embedding`, `cluster` and what the job's priority looks at.
        job: of this deduplication.
    """
    run = plan.run
    findings = Findings(run.store, f"{job.folder}/duplicates", tuple(unit.shard for unit in plan.units), FOUND)
    if len(job.layout.pair_P2):
        reports = decide_in_turns(plan, job)
    else:
        reports = list(
            shuffle(
                list(enumerate(plan.units)),
                partial(produce, job),
                partial(decide, job),
                partitions=job.layout.bins,
                workers=run.workers,
            )
        )
    report = pa.concat_tables([REPORT.empty_table(), *reports])
    bring_home(findings, report.filter(report["path"].is_valid()).select(["path", "rows"]), run.workers)
    run.store.remove(f"{job.folder}/found")
    removed_E, sizes = (np.array(report[name].to_pylist()).sum(axis=0) for name in ("removed", "sizes"))
    groups = sorted(report["groups"].drop_null().to_pylist())
    return Duplicates(findings, groups, removed_E.tolist(), np.trim_zeros(sizes[1:], "b").tolist())


def decide(job: Job, table: pa.Table) -> pa.Table:
    """Decides the rows of some bins, each of whose blocks meets no other."""
    reports = [REPORT.empty_table()]
    for bin_ in pc.unique(table[PARTITION]).to_pylist():
        results = Results(job)
        for _, members, copies in split_blocks(job, table.filter(pc.equal(table[PARTITION], bin_))):
            groups = Groups.singles(len(members.key_N3))
            stands_N = job.stands(members.key_N3)
            block = open_block(screen(members.x_ND), members.key_N3, len(job.rule.threshold_E), stands_N)
            block = settle(block, None, job.rule, groups)
            sizes_N = group_sizes(groups.label_N, copies.of_M)
            results.add(members, copies, block, members.key_N3[groups.label_N, 1:], sizes_N)
        reports.append(results.write(bin_))
    return pa.concat_tables(reports)
