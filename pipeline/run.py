"""One run: what every step may read, and how a step plans and makes its parts.

A step describes its inputs as `Read`s, gets a `Plan`, and either finds its artifact published or maps a pure function
over the shards. The function sees one table for each shard: only the rows that still stand, only the columns asked for.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import pyarrow as pa

from pipeline import metrics
from pipeline.artifact import (
    Artifact,
    manifest_name,
    publish_manifest,
    read_manifest,
)
from pipeline.given import Given, Standing
from pipeline.parts import Part
from pipeline.pool import Pool, Shard
from pipeline.progress import Progress
from pipeline.spread import balanced, spread
from pipeline.standing import take_over, without_lost
from pipeline.storage import Store, digest
from pipeline.units import (
    Attribute,
    Block,
    Judge,
    Unit,
    attribute_unit,
    judge_unit,
    load_blocks,
    load_units,
    work_in_logs,
)

Modality = Literal["image", "text"]

ROWS_PER_ACTOR = 20_000
"""So few are not worth the start of another."""


class NotPublished(Exception):
    """A dry run came to something that a real one would have to make.

    Args:
        name: of the artifact.
        begun: rows of the parts that are there of such artifacts, by name.
    """

    def __init__(self, name: str, begun: Mapping[str, int] | None = None) -> None:
        super().__init__(name)
        self.begun = begun or {}


@dataclass(frozen=True)
class Read:
    """Some columns of an artifact, under the names that the reading function knows them by."""

    artifact: Artifact
    columns: Mapping[str, str]


@dataclass
class Run:
    """The state of one run. The driver's own: tasks get units, never this.

    Attributes:
        store: the workspace.
        pool: its settings; `shards` in the order of their names.
        seed: of every random choice.
        models: settings by name.
        workers: CPU workers that tasks and actors are spread over.
        threads: threads of each worker of a numeric step.
        gpus: GPUs that it may use, also such as are still to come; None for all that there are.
        step_started: when the present step began, of which its artifact's seconds are counted.
        dry: whether to stop, with NotPublished, at the first thing that would have to be made.
        given: what is found once and then applied for ever, if the run is one of many nights; gains what it finds.
        standing: the verdicts of an earlier run that stand, if any do.
        artifacts: all made or found so far, by step name.
        embeddings: those of them that are embeddings, by model and modality.
        verdicts: those of them that are verdicts, `unique_uid` first.
        clusters: clusterings, by the title of the step that asked for them; no steps of their own.
    """

    store: Store
    pool: Pool
    shards: Sequence[Shard]
    seed: int
    models: Mapping[str, Any]
    workers: int
    threads: int
    progress: Progress
    gpus: int | None = None
    dry: bool = False
    given: Given | None = None
    standing: Standing | None = None
    step_started: float = field(default_factory=time.monotonic)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    embeddings: dict[tuple[str, Modality], Artifact] = field(default_factory=dict)
    verdicts: list[Artifact] = field(default_factory=list)
    clusters: dict[str, Artifact] = field(default_factory=dict)

    @property
    def entering(self) -> Artifact | None:
        """The last verdict step; its kept rows are what the next step sees."""
        return self.verdicts[-1] if self.verdicts else None

    def add_verdicts(self, artifact: Artifact) -> Artifact:
        """Takes note of a verdict step that is done."""
        self.artifacts[artifact.step] = artifact
        self.verdicts.append(artifact)
        return artifact

    def add_clusters(self, title: str, artifact: Artifact) -> Artifact:
        """Takes note of the clusters that a step made."""
        self.clusters[title] = artifact
        return artifact

    @property
    def samples(self) -> Artifact:
        """The first artifact: one row for each sample of the pool."""
        return self.artifacts["samples"]

    @property
    def num_entering(self) -> int:
        """How many rows the next step will see."""
        return self.entering.total("kept") if self.entering else self.samples.rows

    def plan(self, name: str, settings: Mapping[str, Any], reads: Sequence[Read], *, reduces: bool = False) -> "Plan":
        """Plans a step over all shards.

        Args:
            name: the step's.
            settings: all that its result depends on besides what it reads: kind, version, settings, and seed if random.
            reads: its inputs.
            reduces: whether a part depends on more than its own shard, so that the address covers all inputs whole.
        """
        inputs = [read.artifact for read in reads]
        entering = [self.entering] if self.entering else []
        earlier = stands = self.standing.verdicts.get(name) if self.standing and reduces else None
        if self.standing and earlier:
            stands = without_lost(self.standing.store, earlier)
        # Which rows enter is part of a part's own address. From one night to the next, what let them enter has another.
        above = [] if self.given is not None and not reduces else entering
        upstream = [artifact.digest if reduces else artifact.folder for artifact in [*inputs, *above]]
        folder = f"{name}/{digest(dict(settings), upstream, *([stands.digest] if stands else []))}"
        plan = Plan(self, name, folder, dict(settings), reads)
        plan.earlier = stands
        own = [earlier] if earlier and self.standing and self.standing.store.url == self.store.url else []
        upstream_artifacts = [self.samples, *inputs, *entering, *own]
        plan.reads = tuple(dict.fromkeys(artifact.manifest for artifact in upstream_artifacts))
        return plan


class Plan:
    """A step's work over all shards: already published, or to be mapped.

    Attributes:
        facts: what the manifest is to say of the finished parts, where a step has it found out.
        reads: the manifests of all that the parts are made from.
        earlier: the verdicts of this step that stand, if any do.
    """

    facts: Callable[[Sequence[Part]], Mapping[str, Any]] | None = None
    reads: tuple[str, ...] = ()
    earlier: Artifact | None = None

    def __init__(self, run: Run, name: str, folder: str, settings: Mapping[str, Any], reads: Sequence[Read]) -> None:
        self.run = run
        self.name = name
        self.folder = folder
        self.settings = settings
        self._samples, self._entering, self._inputs = run.samples, run.entering, tuple(reads)

    @property
    def ids(self) -> list[str]:
        """The address of each part inside the artifact."""
        columns = [artifact.column("id") for artifact in (self._samples, *(read.artifact for read in self._inputs))]
        masks = self._entering.column("mask") if self._entering else [""] * len(columns[0])
        return [digest(id_, mask, inputs) for mask, id_, *inputs in zip(masks, *columns, strict=True)]

    @cached_property
    def units(self) -> Sequence[Unit]:
        """What each task is told; made where there is something to do."""
        paths = [read.artifact.column("path") for read in self._inputs]
        names = [dict(read.columns) for read in self._inputs]
        entering = self._entering.column("path") if self._entering else [None] * len(self._samples.parts)
        shards, rows = self._samples.column("shard"), self._samples.column("rows")
        stands = {id_: part.path for id_, part in self.standing.items()}
        return [
            Unit(shard, id_, count, path, tuple(zip(inputs, names, strict=True)), stands.get(id_))
            for shard, id_, count, path, *inputs in zip(shards, self.ids, rows, entering, *paths, strict=True)
        ]

    @cached_property
    def standing(self) -> Mapping[str, Part]:
        """The parts that stand, by id. Those of another workspace are copied here first."""
        run = self.run
        if self.earlier is None or run.standing is None:
            return {}
        shards = dict(zip(self.ids, self._samples.column("shard"), strict=True))
        return take_over(run.store, self.folder, run.standing.store, self.earlier, shards, workers=run.workers)

    @cached_property
    def new(self) -> "Plan":
        """The same plan, of those shards alone for which no part stands."""
        new = copy.copy(self)
        new.units = [unit for unit in self.units if unit.stands is None]
        return new

    @property
    def published(self) -> Artifact | None:
        """The artifact, when an earlier run has published it for these very inputs.

        Raises:
            NotPublished: it is not there and the run is a dry one.
        """
        artifact = find_published(self.run.store, self.folder, self.ids)
        if artifact is None and self.run.dry:
            raise NotPublished(self.name)
        return artifact

    def groups(self, workers: int) -> list[list[Unit]]:
        """The units dealt to at most `workers` actors, fewer where there is too little to be worth their start."""
        rows = sum(unit.rows for unit in self.units)
        return balanced([(unit, unit.rows) for unit in self.units], min(workers, -(-rows // ROWS_PER_ACTOR)))

    def loaders(self, groups: Sequence[Sequence[Unit]], load: Callable[[pa.Table], Any]) -> list[Callable[[], Any]]:
        """For each group of units, a picklable function that reads their tables and gives `load` of them joined."""
        return [partial(load_units, self.run.store, tuple(group), load) for group in groups]

    def blocks(
        self, groups: Sequence[Sequence[Unit]], load: Callable[[pa.Table], Block]
    ) -> list[Callable[[], Iterator[Block]]]:
        """For each group of units, a picklable function that reads them one at a time and gives `load` of each."""
        return [partial(load_blocks, self.run.store, tuple(group), load) for group in groups]

    def map_verdicts(self, judge: Judge, *, info: Mapping[str, Any] | None = None, threads: int = 1) -> Artifact:
        """Applies a judge, which uses so many threads, to every new shard and publishes all verdicts."""
        work = partial(judge_unit, self.run.store, self.folder, judge)
        return self.publish(self._map(work, threads), info)

    def map_attributes(
        self, attribute: Attribute, *, info: Mapping[str, Any] | None = None, threads: int = 1
    ) -> Artifact:
        """Computes new columns, with so many threads, for every shard and publishes them; every row passes."""
        work = partial(attribute_unit, self.run.store, self.folder, attribute)
        return self.publish(self._map(work, threads), info)

    def publish(self, parts: Iterable[Part], info: Mapping[str, Any] | None = None) -> Artifact:
        """Publishes the artifact once all its parts have come, in any order. Those that were there are no progress.

        Args:
            parts: of every shard for which none stands, each published already.
            info: what the manifest is to say besides.
        """
        run = self.run
        files = run.store.find(self.folder)
        made = dict(self.standing)
        there = {id_ for id_ in self.ids if f"{self.folder}/{id_}/part.json" in files} | made.keys()
        entering = [part.counts["kept"] for part in self._entering.parts] if self._entering else None
        rows = zip(self.ids, entering or self._samples.column("rows"), strict=True)
        with run.progress.step(self.name, sum(count for id_, count in rows if id_ not in there)) as progress:
            for part in parts:
                made[part.id] = part
                if part.id not in there:
                    progress.advance(part.counts["in"], **_losses(part))
                    metrics.count(metrics.SHARDS, step=self.name)
                    metrics.count_losses(self.name, part.counts)
            rows_new = progress.rows
        whole = tuple(made[unit.id] for unit in self.units)
        artifact = Artifact(
            step=self.name,
            folder=self.folder,
            parts=whole,
            info={**(info or {}), **(self.facts(whole) if self.facts else {})},
            seconds=round(time.monotonic() - run.step_started, 3),
            reads=self.reads,
            rows_new=rows_new,
        )
        return publish_manifest(run.store, artifact, self.settings)

    def _map(self, work: Callable[[Unit], Part], threads: int) -> Iterator[Part]:
        logged = partial(work_in_logs, self.run.store.url, self.name, work)
        return spread(logged, self.new.units, workers=self.run.workers, num_cpus=threads)


def _losses(part: Part) -> Mapping[str, int]:
    """How many of a part's rows went for good, by how that is called."""
    reasons = {name.partition(":")[2]: n for name, n in part.counts.items() if name.startswith("dropped:")}
    rejected = sum(n for reason, n in reasons.items() if metrics.is_reject(reason))
    return {"rejected": rejected, "dropped": sum(reasons.values()) - rejected}


def find_published(store: Store, folder: str, part_ids: Sequence[str]) -> Artifact | None:
    """The artifact of exactly these parts, or None when no run has finished it."""
    try:
        return read_manifest(store, folder, manifest_name(folder, part_ids))
    except FileNotFoundError:
        return None
