"""What a run would do: the steps, the rows as far as they are known, and what an earlier run left to reuse."""

from dataclasses import dataclass

from pipeline.curate import check, run_steps, start_run
from pipeline.curation import Curation
from pipeline.progress import Progress
from pipeline.run import NotPublished


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan; rows are None until a run has counted them."""

    name: str
    kind: str
    rows_in: int | None
    rows_out: int | None
    reused: bool


@dataclass(frozen=True)
class DryRun:
    """The plan of a run.

    Attributes:
        shards: how many.
        bytes: their size.
        samples: how many, None until a run has read them.
        steps: in order.
    """

    shards: int
    bytes: int
    samples: int | None
    steps: list[PlannedStep]


def dry_run(config: Curation) -> DryRun:
    """Checks the config as a run would, and looks up what is there; starts no Ray and makes nothing."""
    shards = check(config, dry=True)
    run = start_run(config, shards, workers=1, progress=Progress(), dry=True)
    kinds = ["samples", "unique_uid", *(step.step for step in config.steps)]
    titles = ["samples", "unique_uid", *(step.title for step in config.steps)]
    found = []
    try:
        for artifact in run_steps(run, config.steps):
            found.append((artifact.total("in"), artifact.total("kept")))
    except NotPublished:
        pass
    steps = []
    for i, (title, kind) in enumerate(zip(titles, kinds, strict=True)):
        rows_in, rows_out = found[i] if i < len(found) else (None, None)
        if i == len(found) and i > 0:
            rows_in = found[-1][1]
        steps.append(PlannedStep(title, kind, rows_in, rows_out, i < len(found)))
    samples = found[0][0] if found else None
    return DryRun(len(shards), sum(shard.size for shard in shards), samples, steps)
