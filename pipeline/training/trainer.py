"""Training on Ray: what is checked first, what is started, and what comes out."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.encoders.settings import OpenClipSettings
from operators.errors import ConfigError, InputError, ModelError, WinnowError, WorkspaceError
from operators.training.parameters import has_batch_norm
from pipeline.engine import Resources, engine
from pipeline.failures import causes
from pipeline.lease import claim_on
from pipeline.models import check_model
from pipeline.progress import Progress, StepProgress, open_progress
from pipeline.record import RECORD
from pipeline.shared_disk import check_shared
from pipeline.status.write import working
from pipeline.storage import Store, to_json
from pipeline.summary import SUMMARY
from pipeline.training.examples import Examples, Portion, find_examples, left_out, open_portions
from pipeline.training.feeder import Feeder
from pipeline.training.finished import MODEL, copy_model, output_store, read_origin
from pipeline.training.loop import Job, out_of_memory, train_alone, train_worker
from pipeline.training.metrics_log import METRICS
from pipeline.training.monitor import Monitor
from pipeline.training.plan import (
    Placement,
    decide_encoder,
    few_classes,
    place_workers,
    plan_feed,
    training_identity,
)
from pipeline.training.settings import Training
from pipeline.training.sharing import SharedBlocks
from pipeline.training.towers import build_towers

_POLL_SECONDS = 0.5
_RAY_TRAIN = "training/.ray"
"""Where Ray Train keeps its own notes of a run: nothing that a later run reads."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training left behind.

    Attributes:
        model_path: the folder of the finished model, for open_clip's `local-dir:` and for `models:` of any config.
        metrics_path: `metrics.jsonl`.
        samples: in the training set.
        without_caption: kept samples that were left out for want of a caption.
        samples_seen, steps, epochs: how long it trained.
        seconds: of training, over all attempts.
        data_wait_share: of that time that the workers waited for data.
        loss: of the last step.
        reused: whether the workspace held this very model already.
        rejected: reason -> how many samples of the data could not be used when they were read.
        damaged: shard -> why it could not be read to its end.
    """

    model_path: str
    metrics_path: str
    samples: int
    without_caption: int
    samples_seen: int
    steps: int
    epochs: float
    seconds: float
    data_wait_share: float
    loss: float
    reused: bool = False
    rejected: Mapping[str, int] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> list[str]:
        """What was not trained on, in lines."""
        return left_out(self.without_caption, self.rejected, self.damaged)


def run_training(config: Training, address: str | None = None) -> TrainingResult:
    """Trains as a config says, on a Ray that is started or joined for it.

    Args:
        config: of the training.
        address: of a running cluster.

    Raises:
        UserError, LimitExceeded, TrainingDiverged: what stopped it; the same command goes on from the last checkpoint.
    """
    config = config.resolved()
    check(config)
    resources = Resources(workers=config.resources.cpus, object_store_bytes=config.resources.object_store_bytes)
    with (
        engine(resources, address) as workers,
        open_progress() as display,
        working(config.store, "train", display) as progress,
    ):
        check_shared(config.store)
        place_workers(config)  # what it refuses is known before the pool is read
        portions = open_portions(config, workers=workers, progress=progress)
        return train(config, portions, workers=workers, progress=progress)


def check(config: Training) -> None:
    """Checks what can be known before any work: the model, which is built, and where things are written.

    Raises:
        UserError: what is wrong and what to change.
    """
    encoder = config.model.as_encoder(config.seed)
    try:
        check_model(encoder, text=True)
        model = build_towers(config.model, encoder, config.loss)
    except (ModelError, AssertionError, AttributeError, KeyError, ValueError) as error:  # the libraries raise any
        raise ModelError(f"model: {error}") from error
    if config.accumulate > 1 and has_batch_norm(model):
        rule = f"must be 1 for {config.model.name}, whose batch norms would see a piece of the batch at a time"
        raise ConfigError(f"accumulate {rule}, got {config.accumulate}")
    config.store.check_writable()
    if config.store.exists(RECORD):
        rule = "must be a folder of the training's own"
        raise WorkspaceError(f"workspace {rule}, got {config.store.url}, which holds a curation ({RECORD})")
    if config.output is not None:
        output_store(config.store, config.output).check_writable()


def train(
    config: Training,
    portions: Sequence[Portion],
    *,
    workers: int,
    progress: Progress,
    shared: SharedBlocks | None = None,
) -> TrainingResult:
    """Trains on the kept samples of runs, on a Ray that is up, in a workspace that no other run uses meanwhile.

    Args:
        config: with absolute paths; its `data` is not looked at.
        portions: what to train on.
        workers: CPU workers for what comes before the training.
        progress: of the job.
        shared: what other trainings of this process decode.

    Raises:
        UserError, LimitExceeded, TrainingDiverged: as `run_training`.
    """
    placement = place_workers(config)
    encoder = decide_encoder(config, placement)
    identity = training_identity(config, encoder, portions)
    examples = find_examples(portions, workers=workers)
    for line in left_out(examples.missing, examples.rejected, examples.damaged):
        progress.note(f"train: left out: {line}")
    earlier = read_origin(config.store, MODEL)
    reused = earlier.get("identity") == identity
    if not reused:
        _check_batch(config, examples)
        if earlier:
            progress.note(
                f"train: {config.store.url} holds the model of another training ({earlier['samples_seen']:,} samples "
                f"seen, loss {earlier['loss']:.3f}), which this one's replaces in the end: give another workspace to "
                "keep it"
            )
        for note in _notes(config, encoder, placement):
            progress.note(f"train: {note}")
        _fit(config, placement, (encoder, identity), (portions, examples), progress, shared)
    result = _result(config, examples, reused)
    if config.output is not None:
        copy_model(config.store, MODEL, config.output)
    if not (reused and config.store.exists(SUMMARY)):
        config.store.replace(SUMMARY, to_json(asdict(result)))
    return result


def _check_batch(config: Training, examples: Examples) -> None:
    most = min(examples.rows, int(examples.epoch))
    if config.batch_size > most:
        raise InputError(
            f"batch_size must be at most the {most} samples of an epoch, got {config.batch_size}: "
            "a larger batch would always hold a pair more than once"
        )


def _notes(config: Training, encoder: OpenClipSettings, placement: Placement) -> Iterator[str]:
    """What the user may not expect of a training that is about to begin."""
    if placement.note:
        yield placement.note
    if (share := config.average_with_start) is not None:
        yield (
            f"the finished model is an average: {share:g} of the weights of the start, which {config.model.weights} "
            f"holds, and {1 - share:g} of those of the end"
        )
    if placement.workers > 1 and has_batch_norm(build_towers(config.model, encoder, config.loss)):
        yield (
            f"each of the {placement.workers} workers normalises its own share of a batch, so with batch norm the "
            "result depends on resources.workers"
        )


def _fit(
    config: Training,
    placement: Placement,
    named: tuple[OpenClipSettings, str],
    training_set: tuple[Sequence[Portion], Examples],
    progress: Progress,
    shared: SharedBlocks | None,
) -> None:
    """Trains in a thread of its own and shows what is reported meanwhile."""
    encoder, identity = named
    idle_cpus = int(ray.cluster_resources().get("CPU", 1)) - placement.workers * placement.threads
    planned = plan_feed(config, encoder, *training_set, idle_cpus)
    if sorted_by_class := few_classes(planned.order, training_set[1].pieces):
        progress.note(f"train: {sorted_by_class}")
    # Beside the driver, so that the loss of a node costs neither what is known nor what is decoded elsewhere.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    alone = placement.workers == 1 and config.parallel == "ddp"
    errors: list[BaseException] = []
    tasks: list[Any] = []
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(shared.lent(planned)) if shared else planned
        feeder = ray.remote(Feeder).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote(feed)
        stack.callback(ray.kill, feeder)
        monitor = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
        stack.callback(ray.kill, monitor)
        # First of all: else an interrupted task would miss its actors, and Ray would try it again and say so.
        stack.callback(_cancel, tasks)
        claim = claim_on(config.store.url)
        job = Job(config, encoder, identity, placement.threads, feed.steps_per_deal, feeder, monitor, claim)
        work = partial(_run_alone, job, placement, tasks) if alone else partial(_run_group, job, placement)
        # In the main thread Ray Train would take over what an interrupt does, and keep it.
        thread = threading.Thread(target=_run, args=(work, errors), name="training", daemon=True)
        thread.start()
        with progress.step("train", config.num_steps * config.batch_size, "samples") as step:
            _show(config, monitor, thread, step)
            _raise_failure(config, ray.get(monitor.failure.remote()), errors)


def _raise_failure(config: Training, failure: WinnowError | None, errors: Sequence[BaseException]) -> None:
    """Raises what stopped a training: what a worker said of itself, else what Ray says of it."""
    if failure is not None:
        raise failure
    if errors:
        lost = any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in causes(errors[0]))
        raise out_of_memory(config) if lost else errors[0]


def _cancel(tasks: Sequence[Any]) -> None:
    for task in tasks:
        ray.cancel(task, recursive=False)  # does nothing to one that has ended


def _run(work: Callable[[], None], errors: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        errors.append(error)


def _run_group(job: Job, placement: Placement) -> None:
    """Several workers: a worker group of Ray Train, which starts a lost one again."""
    # Small trainings would wait for the next of Ray Train's looks at its workers, every two seconds, to be told to end.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_SECONDS))
    failures = job.config.resources.max_failures
    with _notes_of_ray(job.config.store) as folder:
        TorchTrainer(
            partial(train_worker, job),
            scaling_config=placement.scaling,
            torch_config=TorchConfig(backend="nccl" if placement.on_gpus else "gloo"),
            run_config=RunConfig(
                name=job.identity,
                storage_path=folder,
                # Workers that find no room, as after the loss of a node, count too: else Ray would try for ever.
                failure_config=FailureConfig(max_failures=failures, controller_failure_limit=failures),
            ),
        ).fit()


@contextlib.contextmanager
def _notes_of_ray(store: Store) -> Iterator[str]:
    """A folder for what Ray Train itself writes: in a local workspace, where the next run removes a killed one's."""
    if not store.is_local:
        with tempfile.TemporaryDirectory(prefix="winnow-train-") as folder:
            yield folder
        return
    store.remove(_RAY_TRAIN)
    try:
        yield store.path(_RAY_TRAIN)
    finally:
        store.remove(_RAY_TRAIN)


def _run_alone(job: Job, placement: Placement, tasks: list[Any]) -> None:
    """One worker: a task, which Ray starts again when its process is lost; it is put with `tasks`."""
    task = ray.remote(train_alone).options(
        num_cpus=placement.threads,
        num_gpus=int(placement.on_gpus),
        max_retries=job.config.resources.max_failures,
        retry_exceptions=True,
    )
    tasks.append(task.remote(job))
    ray.get(tasks[-1])


def _show(config: Training, monitor: Any, thread: threading.Thread, step: StepProgress) -> None:
    """Shows what is reported, until the thread ends."""
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        first, record = ray.get(monitor.latest.remote())
        if not record:
            step.advance(0)  # the display may belong to a job that was interrupted
            continue
        # What an earlier run has done says nothing of how fast this one is.
        step.total = config.num_steps * config.batch_size - first
        step.remarks = (
            *([f"resumed after step {first // config.batch_size:,} of {config.num_steps:,}"] if first else ()),
            f"loss {record['loss']:.3f}",
            f"{record['data_wait_share']:.0%} of the time waiting for data",
        )
        step.advance(record["samples_seen"] - first - step.rows)


def _result(config: Training, examples: Examples, reused: bool) -> TrainingResult:
    origin = read_origin(config.store, MODEL)
    if not origin:
        rule = "must be a folder that every node sees"
        raise WorkspaceError(f"{config.store.url} {rule}, got no model in it from the node that trained")
    return TrainingResult(
        model_path=config.store.path(MODEL) if config.store.is_local else f"{config.store.url}/{MODEL}",
        metrics_path=f"{config.store.url}/{METRICS}",
        samples=examples.rows,
        without_caption=examples.missing,
        samples_seen=origin["samples_seen"],
        steps=origin["step"],
        epochs=round(origin["samples_seen"] / examples.epoch, 3),
        seconds=origin["seconds"],
        data_wait_share=round(origin["waited"] / origin["seconds"], 4) if origin["seconds"] else 0.0,
        loss=origin["loss"],
        reused=reused,
        rejected=examples.rejected,
        damaged=examples.damaged,
    )
