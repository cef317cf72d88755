"""What an earlier run of the same config left, so that a run would find it and not make it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.artifact import Artifact
from pipeline.curate import check, check_no_nights, run_steps, start_run
from pipeline.curation import Curation
from pipeline.embed import make, samples_folder, samples_id
from pipeline.export.run import embeddings_for, find_export
from pipeline.ledger import find_ledger
from pipeline.ledger_writer import ledger_address
from pipeline.nightly.state import find_given
from pipeline.pool import Shard
from pipeline.progress import Progress
from pipeline.run import NotPublished, Run


@dataclass(frozen=True)
class Found:
    """What there is.

    Attributes:
        shards: of the pool, by name.
        artifacts: by step: `samples`, embeddings, clusters and steps, as far as an unbroken chain of them goes.
        fresh: how many shards no samples have been made of yet.
        begun: rows that a pass which is to go on has stored, by artifact.
        exports: which of the config's, by position, are written.
        is_whole: whether nothing is left to do.
    """

    shards: Sequence[Shard]
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    fresh: int = 0
    begun: Mapping[str, int] = field(default_factory=dict)
    exports: Collection[int] = ()
    is_whole: bool = False

    @property
    def samples(self) -> int | None:
        """Of the pool; None until a run has read them."""
        samples = self.artifacts.get("samples")
        return samples.rows if samples else None


def find(config: Curation) -> Found:
    """Checks the config as a run would, and looks up what is there; starts no Ray and makes nothing.

    Raises:
        UserError: as a run would before any work.
    """
    shards = check(config, dry=True)
    check_no_nights(config.store)
    given, standing = find_given(config.resolved())
    run = start_run(config.resolved(), shards, workers=1, progress=Progress(), dry=True, given=given, standing=standing)
    exports: list[int] = []
    begun: Mapping[str, int] = {}
    is_judged = False
    try:
        for _ in run_steps(run, config.resolved().steps):
            pass
        is_judged = True
        for target in config.export:
            make(run, embeddings_for(run, target))
        exports = [i for i, target in enumerate(config.resolved().export) if find_export(run, target)]
    except NotPublished as missing:
        begun = missing.begun
    fresh = 0 if "samples" in run.artifacts else _fresh(run)
    clusters = {f"{title}.clusters": artifact for title, artifact in run.clusters.items()}
    ledger = {"ledger": run.samples} if is_judged and _has_ledger(run) else {}
    is_whole = bool(ledger) and len(exports) == len(config.export)
    return Found(shards, {**run.artifacts, **clusters, **ledger}, fresh, begun, exports, is_whole)


def _has_ledger(run: Run) -> bool:
    current = find_ledger(run.store)
    return bool(current and run.verdicts and current.digest == ledger_address(run.samples, run.verdicts))


def _fresh(run: Run) -> int:
    folder = samples_folder(run.pool)
    files = run.store.find(folder)
    return sum(f"{folder}/{samples_id(run.pool, shard)}/part.json" not in files for shard in run.shards)
