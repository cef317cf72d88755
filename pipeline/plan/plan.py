"""A plan: every step of a run with its rows and its cost, as far as they can be known before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from operators.errors import ConfigError
from pipeline.curate import first_needs
from pipeline.curation import Curation
from pipeline.engine import Resources
from pipeline.export.settings import Export
from pipeline.machine import own_cpus
from pipeline.plan.formulas import cost, kind_of, ledger, unique
from pipeline.plan.machines import Machines
from pipeline.plan.rates import Rates, measure_rates
from pipeline.plan.rehearsal import rehearse
from pipeline.plan.reuse import Found, find
from pipeline.plan.sample import PoolFacts, Sampled, sample_pool
from pipeline.plan.streaming import embed_survivors, pass_over, task_starts
from pipeline.plan.work import Inputs, Work
from pipeline.run import Modality
from pipeline.steps.base import Step
from pipeline.stream.work import Need

_SERVICES = 6
"""Ray's own processes on a machine (GCS, raylet, monitor, agents, the actors of Ray Data), as worker starts."""

_IDLE = 0.7
"""Workers that Ray starts ahead and never uses, two for each CPU, in the same measure: they import less."""

_MISJUDGED = 2
"""How many times the samples of a pool may be what three shards let expect."""

_EXPORT_BYTES = {"uids": 16, "keys": 24, "parquet": 120, "semdedup": 150, "clip_retrieval": 120}
"""Of a kept row, besides embeddings."""
_TAR_BYTES = 3 * 1024 + 120
"""Of a sample in an exported tar: headers and padding of three members, and its row in the mapping."""


@dataclass(frozen=True)
class PlannedStep:
    """One line of a plan.

    Attributes:
        name: the step's.
        kind: of step; a method of `prune` is one of its own.
        rows_in, rows_out: None where no run has counted them and they are not known otherwise.
        is_bound: whether `rows_in` is only known to be no more.
        reused: whether an earlier run left it, so that it costs nothing.
        work: what it costs, starts of processes apart.
    """

    name: str
    kind: str
    rows_in: int | None
    rows_out: int | None
    is_bound: bool
    reused: bool
    work: Work


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        shards, bytes, samples: of the pool; samples are None until a run has read them and none were sampled.
        steps: in order; the last ones are ledger, exports, report and the starting of processes.
        machines: that it is for.
        facts, rates: that it follows from; None where nothing is left to do.
    """

    shards: int
    bytes: int
    samples: int | None
    steps: Sequence[PlannedStep]
    machines: Machines
    facts: PoolFacts | None = None
    rates: Rates | None = None

    @property
    def total(self) -> Work:
        """Of all steps; the memory is that of workers, not the driver's."""
        largest = max((step.work.worker_bytes for step in self.steps if step.kind != START), default=0.0)
        return replace(sum((step.work for step in self.steps), Work()), worker_bytes=largest)

    def dollars(self, work: Work) -> float:
        """What the time of some work costs."""
        return self.machines.dollars(work.cpu_seconds, work.gpu_seconds)

    @property
    def wall_seconds(self) -> float:
        """The least time it takes, if every step keeps all machines busy, or its driver."""
        works = (step.work for step in self.steps)
        times = (
            (self.machines.wall_seconds(work.cpu_seconds, work.gpu_seconds), work.driver_seconds) for work in works
        )
        return sum(map(max, times))


START = "start"


def default_cpus(resources: Resources) -> int:
    """The CPU workers that a run on this machine has."""
    return resources.workers or own_cpus()


def make_plan(config: Curation, machines: Machines, overrides: Mapping[str, Any], *, shards: int = 3) -> Plan:
    """Looks at what is there, samples the pool, measures this machine, and adds it all up.

    Args:
        config: of the run.
        machines: that it is to run on.
        overrides: rates that need not be measured.
        shards: how many to sample.

    Raises:
        UserError: the config, the pool or the overrides are wrong.
    """
    found = find(config)
    if found.is_whole:
        return _nothing_to_do(config, machines, found)
    needs = all_needs(config)
    sampled = sample_pool(config.pool, found.shards, config.models, needs, count=shards)
    if found.samples is not None:
        sampled = replace(sampled, facts=replace(sampled.facts, samples=found.samples))
    numeric = any(_is_numeric(step) for step in config.steps)
    rates = measure_rates(sampled, config.models, needs, machines, overrides, numeric=numeric)
    return add_up(config, sampled, rates, machines, found)


def all_needs(config: Curation) -> list[Need]:
    """Every embedding that some step asks for."""
    named = dict.fromkeys(need for step in config.steps for need in step.embeddings())
    return [Need(model, modality, "") for model, modality in named]


def _is_numeric(step: Step) -> bool:
    """Whether a step does arithmetic, for which its workers import torch."""
    return bool(step.embeddings()) or step.looks_at_images or any(_is_numeric(inner) for _, inner in step.inner)


def add_up(config: Curation, sampled: Sampled, rates: Rates, machines: Machines, found: Found) -> Plan:
    """The plan that follows from what was measured or described. Reads nothing of the pool."""
    with rehearse(sampled.table) as rehearsal:
        inputs = Inputs(
            config.pool, config.models, config.resources.threads, sampled, rates, machines, rehearsal=rehearsal
        )
        steps = _Steps(found, rates.worker.seconds)
        samples = float(sampled.facts.samples)
        first = first_needs(config.steps)
        for name, (left, work) in _first_pass(inputs, first, samples, found).items():
            steps.add(name, "samples" if name == "samples" else "embedding", left, work)
        rows = steps.add("unique_uid", "unique_uid", samples, unique(inputs, samples))
        done = list(first)
        for step in config.steps:
            needs = [need for need in step.embeddings() if need not in done]
            for name, (left, work) in _later_pass(inputs, needs, rows, found).items():
                steps.add(name, "embedding", left, work)
            done += needs
            if config.given is None:  # whose centroids are applied, however few rows come
                _check_clusters(step, found.samples, sampled.facts.samples)
            rows = steps.add(step.title, kind_of(step), rows, cost(inputs, step, rows))
        steps.is_bound = False
        steps.add("ledger", "ledger", samples, ledger(inputs, samples))
        steps.is_bound = not steps.is_known
        for i, target in enumerate(config.export):
            steps.add(f"export {target.format}", "export", rows, _export(inputs, target, rows), i in found.exports)
        if config.report:
            steps.add("report", "report", samples, _report(inputs, samples, len(config.steps)), found.is_whole)
        steps.add("start-up", START, None, _start_up(inputs, config, steps.lines))
    return Plan(
        sampled.facts.shards, sampled.facts.bytes, sampled.facts.samples, steps.lines, machines, sampled.facts, rates
    )


def _first_pass(
    inputs: Inputs, needs: Sequence[tuple[str, Modality]], rows: float, found: Found
) -> dict[str, tuple[float, Work]]:
    """Reading the shards that are new, or where all are read, embedding what a model has not seen: rows and work."""
    if "samples" not in found.artifacts:
        share = found.fresh / len(found.shards) if found.shards else 1.0
        return {name: (rows, work) for name, work in pass_over(inputs, needs, rows, share=share).items()}
    return {"samples": (rows, Work()), **_later_pass(inputs, needs, rows, found)}


def _later_pass(
    inputs: Inputs, needs: Sequence[tuple[str, Modality]], rows: float, found: Found
) -> dict[str, tuple[float, Work]]:
    """Embedding what is lacking of these rows, of which a stopped pass may have stored some: rows and work."""
    lacking = [need for need in needs if ".".join(need) not in found.artifacts]
    left = max(0.0, rows - min((found.begun.get(".".join(need), 0) for need in lacking), default=0))
    works = embed_survivors(inputs, lacking, left, inputs.facts.samples)
    return {name: (left, works.get(name, Work())) for name in map(".".join, needs)}


def _check_clusters(step: Step, counted: int | None, expected: int) -> None:
    """Raises ConfigError where a step asks for more clusters of its rows than the pool has samples.

    Args:
        step: of the run.
        counted: the pool's samples; None where no run has read them.
        expected: what three shards let expect, which may be too few.
    """
    asked = None if getattr(step, "target", None) else getattr(step, "clusters", None)
    most = max(asked) if isinstance(asked, list | tuple) else asked
    if isinstance(most, int) and most > (_MISJUDGED * expected if counted is None else counted):
        samples = f"about {expected:,}" if counted is None else f"{counted:,}"
        raise ConfigError(f"{step.title}.clusters must be at most the {samples} samples of the pool, got {most:,}")


class _Steps:
    """The lines of a plan, one after the other."""

    def __init__(self, found: Found, worker_seconds: float = 0.0) -> None:
        self.lines: list[PlannedStep] = []
        self.is_bound = False
        self.is_known = True
        self._found = found
        self._worker_seconds = worker_seconds

    def add(self, name: str, kind: str, rows: float | None, work: Work, reused: bool | None = None) -> float:
        """Adds a line; gives the rows that go on, or may at most."""
        artifact = self._found.artifacts.get(name)
        reused = artifact is not None if reused is None else reused
        rows_in = None if rows is None else round(rows)
        rows_out = None if rows is None or work.kept is None else round(rows * work.kept)
        is_bound = self.is_bound and rows is not None
        if artifact is not None:
            rows_in, rows_out, is_bound = artifact.total("in"), artifact.total("kept"), False
            self.is_bound = False
        elif work.kept is None:
            self.is_bound, self.is_known = True, False
        work = Work() if reused else work.with_tasks(self._worker_seconds)
        self.lines.append(PlannedStep(name, kind, rows_in, rows_out, is_bound, reused, work))
        return float(rows_in or 0) if rows_out is None else float(rows_out)


def _nothing_to_do(config: Curation, machines: Machines, found: Found) -> Plan:
    steps = _Steps(found)
    kinds = {step.title: kind_of(step) for step in config.steps}
    kept = 0.0
    for name, artifact in found.artifacts.items():
        if not name.endswith(".clusters"):
            kind = kinds.get(name, "embedding" if "." in name else name)
            rows_out = steps.add(name, kind, artifact.total("in"), Work())
            kept = kept if name == "ledger" else rows_out
    for target in config.export:
        steps.add(f"export {target.format}", "export", kept, Work(), reused=True)
    total = sum(shard.size for shard in found.shards)
    return Plan(len(found.shards), total, found.samples, steps.lines, machines)


def _export(inputs: Inputs, target: Export, rows: float) -> Work:
    """Writing the kept rows: the samples themselves for a webdataset, and some bytes of each for the other formats."""
    facts = inputs.facts
    if target.format == "webdataset":
        each = facts.image_bytes + facts.caption_chars + _TAR_BYTES
    else:
        model = getattr(target, "model", None)
        each = _EXPORT_BYTES[target.format] + (2 * inputs.encoding(model).dim if model else 0)
    images = facts.bytes * rows / max(1, facts.samples) if target.format == "webdataset" else 0.0
    seconds = rows * (facts.read_seconds if images else 0.0) + rows * each * 4e-9
    return Work(
        read=images + rows * 60,
        written=rows * each,
        stored=rows * each,
        cpu_seconds=seconds,
        tasks=inputs.groups(),
        worker_bytes=inputs.rates.worker.bytes + 2 * facts.image_bytes,
    )


def _report(inputs: Inputs, rows: float, steps: int) -> Work:
    """Scanning the parts of every step once more."""
    scan = rows * (steps + 1) * inputs.rehearsal.samples.seconds.row
    return Work(read=rows * 40 * steps, cpu_seconds=scan + inputs.rates.worker.seconds, tasks=inputs.groups())


def _start_up(inputs: Inputs, config: Curation, steps: Sequence[PlannedStep]) -> Work:
    """The driver, Ray, the workers of tasks, and what steps start besides."""
    rates = inputs.rates
    # The driver looks at every model before any work, and starts the fits: it imports what their workers do.
    imported = [encoding.start for encoding in rates.encodings.values() if encoding.start] + [rates.numeric]
    driver = rates.driver.seconds + max(start.seconds - rates.worker.seconds for start in imported)
    memory = rates.driver.bytes + max(start.bytes - rates.worker.bytes for start in imported)
    services = (_SERVICES + _IDLE * inputs.workers) * rates.worker.seconds
    own = sum(step.work.start_seconds for step in steps)
    seconds = driver + services + task_starts(inputs) + own
    return Work(cpu_seconds=seconds, driver_seconds=driver, worker_bytes=memory)
