"""What a run did, in numbers: `summary.json` and the table that a job ends with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.artifact import Artifact
from pipeline.console import print_table
from pipeline.run import Run
from pipeline.storage import Store, to_json

SUMMARY = "summary.json"


@dataclass(frozen=True)
class StepSummary:
    """One line of the table.

    Attributes:
        name: the step's.
        rows_in: rows that entered.
        rows_out: rows that go on.
        seconds: wall time of the run that made it.
        reused: whether it was there, whole, before this run.
        rows_new: rows that entered parts which this run made; what goes shard by shard leaves other parts as they are.
            Of a night: parts that the snapshot before has not, so that one that was resumed counts all of its own.
    """

    name: str
    rows_in: int
    rows_out: int
    seconds: float
    reused: bool
    rows_new: int = 0


@dataclass(frozen=True)
class Export:
    """What was written outside the workspace.

    Attributes:
        format: as in the config.
        path: where.
        samples: how many.
        files: how many.
        bytes: their size.
        seconds: wall time of the run that wrote it.
        reused: whether it was there, whole, before this run.
    """

    format: str
    path: str
    samples: int
    files: int
    bytes: int
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Summary:
    """The sums: `samples_seen = kept + sum(dropped) + sum(rejected)`.

    Attributes:
        samples_seen: rows of the ledger.
        kept: samples that passed every step.
        dropped: step -> reason -> count.
        rejected: reason -> count.
        shards_damaged: shard -> `{reason, message}`.
        uids: how many were supplied, and how many of the supplied were no uids.
        steps: in order, embeddings and ledger included.
        exports: what was written outside the workspace.
        workspace: where.
        warnings: what a step found that someone should look at, in sentences.
        ledger: digest of the ledger whose sums these are.
    """

    samples_seen: int
    kept: int
    dropped: Mapping[str, Mapping[str, int]]
    rejected: Mapping[str, int]
    shards_damaged: Mapping[str, Mapping[str, str]]
    uids: Mapping[str, int]
    steps: Sequence[StepSummary]
    exports: Sequence[Export]
    workspace: str
    warnings: Sequence[str] = ()
    ledger: str = ""

    @property
    def reused(self) -> bool:
        """Whether the run found everything done."""
        return all(step.reused for step in self.steps) and all(export.reused for export in self.exports)


def summarise(run: Run, exports: Sequence[Export]) -> Summary:
    """Adds the run up and checks the sums.

    Args:
        run: a run whose artifacts are all there, in the order in which they were needed.
        exports: their receipts.
    """
    first, *later = run.verdicts
    last = run.verdicts[-1]
    dropped = {artifact.step: artifact.totals("dropped") for artifact in later}
    rejected = first.totals("dropped")
    kept = last.total("kept")
    seen = run.samples.rows
    assert seen == kept + sum(rejected.values()) + sum(sum(reasons.values()) for reasons in dropped.values()), (
        f"{seen} samples seen, {kept} kept, {dropped} dropped, {rejected} rejected"
    )
    return Summary(
        samples_seen=seen,
        kept=kept,
        dropped=dropped,
        rejected=rejected,
        shards_damaged={
            part.shard: {"reason": part.notes["damage"], "message": part.notes.get("message", "")}
            for part in run.samples.parts
            if part.notes.get("damage")
        },
        uids={"supplied": run.samples.total("uid_supplied"), "invalid": run.samples.total("uid_invalid")},
        steps=[_step(artifact) for artifact in run.artifacts.values()],
        exports=exports,
        workspace=run.store.url,
        warnings=[warning for artifact in run.artifacts.values() for warning in artifact.info.get("warnings", ())],
        ledger=run.artifacts["ledger"].parts[0].id if "ledger" in run.artifacts else "",
    )


def _step(artifact: Artifact) -> StepSummary:
    rows_in, rows_out = artifact.total("in"), artifact.total("kept")
    return StepSummary(artifact.step, rows_in, rows_out, artifact.seconds, artifact.reused, artifact.rows_new)


def write_summary(run: Run, summary: Summary) -> None:
    """Replaces `summary.json`, unless nothing was done and it says so much already."""
    data = to_json(asdict(summary))
    if summary.reused and run.store.exists(SUMMARY) and _results(run.store.read(SUMMARY)) == _results(data):
        return
    run.store.replace(SUMMARY, data)


def read_summary(store: Store) -> Summary | None:
    """The summary of a curation, as `write_summary` wrote it; None where there is none."""
    try:
        written: dict[str, Any] = store.read_json(SUMMARY)
        steps = [StepSummary(**step) for step in written.pop("steps")]
        exports = [Export(**export) for export in written.pop("exports")]
        return Summary(steps=steps, exports=exports, **written)
    except (FileNotFoundError, KeyError, TypeError):  # TypeError: that of another kind of job, or of another version
        return None


def _results(data: bytes) -> dict[str, Any]:
    """A written summary without what differs between a run and its repetition."""
    written: dict[str, Any] = json.loads(data)
    for record in (*written["steps"], *written["exports"]):
        del record["seconds"], record["reused"]
        record.pop("rows_new", None)
    return written


def print_summary(summary: Summary) -> None:
    """Prints the table that a run ends with, and where to look next."""
    lines: list[tuple[object, ...]] = [
        (step.name, step.rows_in, step.rows_new, step.rows_out, "reused" if step.reused else f"{step.seconds:.1f} s")
        for step in summary.steps
    ]
    lines += [
        (
            f"export {export.format}",
            summary.kept,
            None,
            export.samples,
            "reused" if export.reused else f"{export.seconds:.1f} s",
        )
        for export in summary.exports
    ]
    partly_new = any(not step.reused and step.rows_new != step.rows_in for step in summary.steps)
    shown = [0, 1, 2, 3, 4] if partly_new else [0, 1, 3, 4]
    headings = ("step", "rows in", "new", "rows out", "time")
    print_table([headings[i] for i in shown], [[line[i] for i in shown] for line in lines])
    rejected = sum(summary.rejected.values())
    dropped = sum(sum(reasons.values()) for reasons in summary.dropped.values())
    print(
        f"\n{summary.samples_seen:,} samples seen = {summary.kept:,} kept + {dropped:,} dropped + {rejected:,} rejected"
    )
    for shard, damage in summary.shards_damaged.items():
        print(f"damaged shard: {shard} ({damage['reason']}: {damage['message']})")
    for warning in summary.warnings:
        print(f"warning: {warning}")
    if summary.reused:
        print("nothing to do: every step reused")
    print(f"workspace: {summary.workspace} (summary.json, ledger/, report.html)")
