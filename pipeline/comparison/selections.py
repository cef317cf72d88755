"""What each selection keeps of the pool, and what can be said of that before anything is trained on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from operators.errors import InputError
from pipeline.artifact import read_columns
from pipeline.columns import booleans
from pipeline.comparison.results import MeanScore
from pipeline.comparison.settings import Comparison, Kept, Like
from pipeline.curate import first_needs, run_steps, start_run
from pipeline.embed import make
from pipeline.evaluation.task_settings import NamedTask
from pipeline.pool import Shard, Source
from pipeline.progress import Progress
from pipeline.record import open_run
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.steps.base import Step
from pipeline.steps.clusters import cluster
from pipeline.steps.diversity import measure
from pipeline.storage import Store


@dataclass(frozen=True)
class Selected:
    """One selection.

    Attributes:
        name: in the config.
        kinds: of its steps.
        like: the selection whose size it has, where it is a random one.
        runs: over the pool with the selection's verdicts, by seed of the trainings; of a random selection each differs.
        samples: that it keeps.
        scores: by score step.
        seconds: what each step and embedding took when it was made, by its title. Embeddings that are made while the
            pool is read stand with `samples`.
        titles: of its own steps, whose cost is nobody else's.
        diversity: as `pipeline.steps.diversity` gives it, where it was asked for; of a random selection the first
            seed's.
        warnings: sentences.
    """

    name: str
    kinds: tuple[str, ...]
    like: str | None
    runs: Mapping[int, Run]
    samples: int
    scores: Mapping[str, MeanScore] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    diversity: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selecting:
    """What all selections of a job are made with.

    Attributes:
        config: with absolute paths.
        shards: of the pool.
        sources: of the evaluation sets, to be kept out.
        workers: CPU workers.
        progress: of the job.
    """

    config: Comparison
    shards: Sequence[Shard]
    sources: Sequence[Source]
    workers: int
    progress: Progress

    def run(self, name: str, keep: int = 0, seed: int | None = None) -> Run:
        """The finished run of a selection; `keep` and `seed` are those of a random one."""
        curation = self.config.curation(name, self.sources, keep, seed)
        run = start_run(curation, self.shards, workers=self.workers, progress=self.progress)
        for _ in run_steps(run, curation.steps):
            pass
        return run

    def whole(self) -> Run:
        """The pool as it comes, read in one pass with every model that some selection needs of all of it."""
        config = self.config
        names = [name for name in config.selections if name not in config.randoms]
        curations = [config.curation(name, self.sources) for name in names]
        run = start_run(curations[0], self.shards, workers=self.workers, progress=self.progress)
        needs = [need for curation in curations for need in first_needs(curation.steps)]
        if config.diversity:
            needs.append((config.diversity.model, "image"))
        make(run, list(dict.fromkeys(needs)))
        for _ in run_steps(run, ()):
            pass
        return run


def select(work: Selecting) -> list[Selected]:
    """Runs the steps of every selection, in the order of the config.

    Raises:
        UserError, LimitExceeded: as a curation, or a selection keeps nothing.
    """
    config = work.config
    whole = work.whole()
    found: dict[str, Selected] = {}
    # Random selections last: they need to know how many to draw.
    for name in sorted(config.selections, key=lambda name: name in config.randoms):
        selection = config.selections[name]
        if isinstance(selection, Like):
            keep = found[selection.like].samples
            runs = {seed: work.run(name, keep, seed) for seed in config.seeds}
            selected = Selected(name, ("random",), selection.like, runs, keep)
        elif isinstance(selection, Kept):
            found[name] = _opened(work, name, selection)
            continue
        else:
            selected = _steps(work, name, selection)
        found[name] = _with_diversity(config, whole, selected)
    return [found[name] for name in config.selections]


def _steps(work: Selecting, name: str, steps: Sequence[Step]) -> Selected:
    run = work.run(name)
    if not run.num_entering:
        raise InputError(f"selections.{name} must keep at least one sample, got none of {run.samples.rows}")
    scores = {step.title: mean_score(run, step.title) for step in steps if step.gives_score}
    seconds = {title: artifact.seconds for title, artifact in run.artifacts.items()}
    came = next((run.artifacts[step.title].total("in") for step in steps if step.judges), None)
    kept_all = f"selections.{name}: its steps kept all of the {run.num_entering:,} samples that came to them"
    return Selected(
        name=name,
        kinds=tuple(step.step for step in steps),
        like=None,
        runs=dict.fromkeys(work.config.seeds, run),
        samples=run.num_entering,
        warnings=(kept_all,) if came == run.num_entering else (),
        scores=scores,
        seconds=seconds,
        titles=tuple(step.title for step in steps),
    )


def _opened(work: Selecting, name: str, selection: Kept) -> Selected:
    """What another curation kept. Diversity is not measured of it: its samples are not those of the pool."""
    store = Store(selection.workspace, selection.storage or {})
    run, config = open_run(store, workers=work.workers, progress=work.progress, snapshot=selection.snapshot)
    if not all(source.has_images for source in run.pool.sources):
        rule = f"selections.{name} must be a workspace of a pool with images, which models are trained on"
        raise InputError(f"{rule}, got {store.url}")
    if not run.num_entering:
        raise InputError(f"selections.{name} must keep at least one sample, got none of {run.samples.rows}")
    return Selected(
        name=name,
        kinds=selection.kinds,
        like=None,
        runs=dict.fromkeys(work.config.seeds, run),
        samples=run.num_entering,
        scores={step.title: mean_score(run, step.title) for step in config.steps if step.gives_score},
    )


def evaluation_sources(tasks: Sequence[NamedTask]) -> list[Source]:
    """The sources that models are tested on, each under a name of its own; what a linear probe is fitted on is none.

    Images are looked for, so those without a text count, too.
    """
    pools = [(task, key, pool) for task in tasks for key, pool in task.pools.items() if key != "train"]
    return [
        source.without_text.model_copy(update={"name": f"{task.name.replace('/', '.')}.{key}.{number}"})
        for task, key, pool in pools
        for number, source in enumerate(pool.sources)
    ]


def mean_score(run: Run, title: str) -> MeanScore:
    """The means of a score step of a run, summed exactly, so that no number of workers can change them."""
    assert run.entering is not None
    parts = zip(run.artifacts[title].parts, run.entering.parts, strict=True)
    items = [(score.path, verdicts.path) for score, verdicts in parts]
    sums = list(spread(partial(_sums, run.store), items, workers=run.workers))
    totals = [math.fsum(column) for column in zip(*sums, strict=True)]
    return MeanScore(*(total / count if count else math.nan for total, count in (totals[:2], totals[2:])))


def _sums(store: Store, paths: tuple[str, str]) -> tuple[float, int, float, int]:
    """Sum and count of a shard's scores, and of those that were kept."""
    score, verdicts = paths
    score_N = read_columns(store, score, ["score"])["score"].to_numpy()
    kept_N = booleans(read_columns(store, verdicts, ["kept"])["kept"])
    has_N = ~np.isnan(score_N)
    all_M, kept_M = score_N[has_N], score_N[has_N & kept_N]
    return math.fsum(all_M), len(all_M), math.fsum(kept_M), len(kept_M)


def _with_diversity(config: Comparison, whole: Run, selected: Selected) -> Selected:
    settings = config.diversity
    if settings is None:
        return selected
    clusters = cluster(whole, "comparison", settings.model, settings.kmeans)
    run = next(iter(selected.runs.values()))
    assert run.entering is not None
    found = measure(whole, f"selections.{selected.name}", settings, clusters, run.entering.parts)
    warnings = (*selected.warnings, *found.get("warnings", ()))
    return replace(selected, diversity=found["diversity"], warnings=warnings)
