"""A model for each selection and seed: trained side by side as far as the machine allows, all on the same recipe."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

from operators.encoders.settings import OpenClipSettings
from pipeline.comparison.selections import Selected
from pipeline.comparison.settings import Comparison
from pipeline.placement import most_threads, room
from pipeline.progress import Progress, StepProgress
from pipeline.status.write import working
from pipeline.training.examples import Portion
from pipeline.training.settings import Data, Training
from pipeline.training.sharing import SharedBlocks
from pipeline.training.trainer import TrainingResult, train

_STOP_SECONDS = 10

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
        KeyboardInterrupt: nothing is finished first. A later run goes on from the last checkpoints.
    """
    jobs = {(selected.name, seed): run for selected in selections for seed, run in selected.runs.items()}
    at_once, recipe = side_by_side(config, len(jobs))
    shared = SharedBlocks(workers)
    interrupted = threading.Event()

    def work(key: Key) -> TrainingResult:
        own = training(recipe, *key)
        with working(own.store, "compare", progress) as reported:
            shown = Named(reported, " ".join(map(str, key)), interrupted)
            return train(own, [Portion(jobs[key])], workers=workers, progress=shown, shared=shared)

    pool = ThreadPoolExecutor(at_once, thread_name_prefix="training")
    futures: dict[Key, Future[TrainingResult]] = {}
    try:
        futures |= {key: pool.submit(work, key) for key in jobs}
        wait(futures.values(), return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)
    except BaseException:
        interrupted.set()
        pool.shutdown(wait=False, cancel_futures=True)
        # A thread that lets go of its actors only after Ray has been shut down would start another Ray.
        wait(futures.values(), timeout=_STOP_SECONDS)
        raise
    return {key: future.result() for key, future in futures.items() if not future.cancelled()}


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
    on_gpus = resources.gpus if resources.gpus is not None else room(1, on_gpus=True) > 0
    if on_gpus or (resources.workers or 1) > 1:
        return config.trainings_at_once or 1, config
    at_once = min(config.trainings_at_once or jobs, max(1, room(resources.threads or 1)), jobs)
    threads = resources.threads or max(1, most_threads(at_once))
    own = resources.model_copy(update={"workers": 1, "threads": threads})
    return at_once, config.model_copy(update={"training": config.training.model_copy(update={"resources": own})})


def models(config: Comparison, results: Mapping[Key, TrainingResult]) -> dict[Key, OpenClipSettings]:
    """The trained models, as an evaluation takes them."""
    towers, storage = config.training.model, config.storage or None
    return {
        (name, seed): towers.as_encoder(seed).model_copy(update={"weights": result.model_path, "storage": storage})
        for (name, seed), result in results.items()
    }


class Named(Progress):
    """A part of a display: every step says whose it is, and ends when the job is interrupted.

    The job's interrupt comes to its main thread alone; a thread beside it notices when it next shows anything.
    """

    def __init__(self, display: Progress, name: str, interrupted: threading.Event) -> None:
        super().__init__(display.clock)
        self._display = display
        self._name = name
        self._interrupted = interrupted

    def step(self, name: str, total: int | None = None, unit: str = "rows") -> StepProgress:
        """Begins a step of the whole display."""
        return super().step(f"{self._name}: {name}", total, unit)

    def note(self, text: str, **fields: Any) -> None:
        """Shows one line."""
        self._display.note(f"{self._name}: {text}", **fields)

    def started(self, step: StepProgress) -> None:
        """Shows that a step began. Raises KeyboardInterrupt where the job is interrupted."""
        self._stop()
        self._display.started(step)

    def advanced(self, step: StepProgress) -> None:
        """Shows how far it is. Raises KeyboardInterrupt where the job is interrupted."""
        self._stop()
        self._display.advanced(step)

    def ended(self, step: StepProgress, end: str) -> None:
        """Shows that it ended."""
        self._display.ended(step, end)

    def _stop(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
