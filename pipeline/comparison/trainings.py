"""A model for each selection and seed: trained side by side as far as the machine allows, all on the same recipe."""

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import ray

from operators.encoders.settings import OpenClipSettings
from pipeline.comparison.selections import Selected
from pipeline.comparison.settings import Comparison
from pipeline.progress import Progress, StepProgress
from pipeline.training.examples import Portion
from pipeline.training.settings import Data, Training
from pipeline.training.sharing import SharedBlocks
from pipeline.training.trainer import TrainingResult, train

Key = tuple[str, int]
"""Name of a selection, seed."""


def train_all(
    config: Comparison, selections: Sequence[Selected], *, workers: int, progress: Progress
) -> dict[Key, TrainingResult]:
    """Trains on every selection with every seed, or finds that done.

    Args:
        config: with absolute paths.
        selections: with their runs.
        workers: CPU workers for what comes before a training.
        progress: of the job.

    Raises:
        UserError, LimitExceeded, TrainingDiverged: of the first training that fails; those that have not begun are not
            begun, and those that run are finished first. A later run goes on from there.
    """
    jobs = {(selected.name, seed): run for selected in selections for seed, run in selected.runs.items()}
    at_once, recipe = side_by_side(config, len(jobs))
    shared = SharedBlocks(workers)

    def work(key: Key) -> TrainingResult:
        shown = Named(progress, " ".join(map(str, key)))
        own = training(recipe, *key)
        with own.store.locked():
            return train(own, [Portion(jobs[key])], workers=workers, progress=shown, shared=shared)

    with ThreadPoolExecutor(at_once, thread_name_prefix="training") as pool:
        futures: dict[Key, Future[TrainingResult]] = {key: pool.submit(work, key) for key in jobs}
        wait(futures.values(), return_when=FIRST_EXCEPTION)
        for future in futures.values():
            future.cancel()
        done = {key: future for key, future in futures.items() if not future.cancelled()}
    return {key: future.result() for key, future in done.items()}


def training(config: Comparison, name: str, seed: int) -> Training:
    """The training of one model; its `data` stands for the run that it is given."""
    return Training(
        workspace=f"{config.store.url.rstrip('/')}/training/{name}/{seed}",
        storage=config.storage,
        seed=seed,
        data=(Data(workspace=config.workspace),),
        **dict(config.training),
    )


def side_by_side(config: Comparison, jobs: int) -> tuple[int, Comparison]:
    """How many trainings run at once, and the config with what each of them may use."""
    resources = config.training.resources
    total = ray.cluster_resources()
    cpus = int(total.get("CPU", 1))
    on_gpus = resources.gpus if resources.gpus is not None else bool(total.get("GPU"))
    if on_gpus or (resources.workers or 1) > 1:
        return config.trainings_at_once or 1, config
    room = max(1, cpus // (resources.threads or 1))
    at_once = min(config.trainings_at_once or room, room, jobs)
    threads = resources.threads or max(1, cpus // at_once)
    own = resources.model_copy(update={"workers": 1, "threads": threads})
    return at_once, config.model_copy(update={"training": config.training.model_copy(update={"resources": own})})


def models(config: Comparison, results: Mapping[Key, TrainingResult]) -> dict[Key, OpenClipSettings]:
    """The trained models, as an evaluation takes them."""
    towers = config.training.model
    return {
        (name, seed): towers.as_encoder(seed).model_copy(update={"weights": result.model_path})
        for (name, seed), result in results.items()
    }


class Named(Progress):
    """A part of a display: every step says whose it is."""

    def __init__(self, display: Progress, name: str) -> None:
        super().__init__(display.clock)
        self._display = display
        self._name = name

    def step(self, name: str, total: int | None = None, unit: str = "rows") -> StepProgress:
        """Begins a step of the whole display."""
        return self._display.step(f"{self._name}: {name}", total, unit)

    def note(self, text: str) -> None:
        """Shows one line."""
        self._display.note(f"{self._name}: {text}")
