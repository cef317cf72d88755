"""Training on Ray: what is checked first, what is started, and what comes out."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.encoders.settings import OpenClipSettings
from operators.errors import InputError, ModelError
from pipeline.engine import Resources, engine
from pipeline.failures import causes
from pipeline.lease import claim_on
from pipeline.models import check_model, decide_precision
from pipeline.progress import Progress, open_progress
from pipeline.storage import to_json
from pipeline.summary import SUMMARY
from pipeline.training.examples import Examples, Portion, find_examples, open_portions
from pipeline.training.feeder import Feeder
from pipeline.training.finished import MODEL, copy_model, output_store, read_origin
from pipeline.training.loop import Job, out_of_memory, train_alone, train_worker
from pipeline.training.metrics_log import METRICS
from pipeline.training.monitor import Monitor
from pipeline.training.plan import place_workers, plan_feed, training_identity
from pipeline.training.settings import Training
from pipeline.training.sharing import SharedBlocks
from pipeline.training.towers import find_towers

_POLL_SECONDS = 0.5


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
    with engine(resources, address) as workers, open_progress() as progress:
        portions = open_portions(config, workers=workers, progress=progress)
        return train(config, portions, workers=workers, progress=progress)


def check(config: Training) -> None:
    """Checks what can be known before any work: the model, its weights, and where things are written.

    Raises:
        UserError: what is wrong and what to change.
    """
    encoder = config.model.as_encoder(config.seed)
    try:
        check_model(encoder, text=True)
        find_towers(encoder, config.loss)
    except ModelError as error:
        raise ModelError(f"model: {error}") from error
    config.store.check_writable()
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
    """Trains on the kept samples of runs, on a Ray that is up.

    Args:
        config: with absolute paths; its `data` is not looked at.
        portions: what to train on.
        workers: CPU workers for what comes before the training.
        progress: of the job.
        shared: what other trainings of this process decode.

    Raises:
        UserError, LimitExceeded, TrainingDiverged: as `run_training`.
    """
    encoder = decide_precision(config.model.as_encoder(config.seed))
    assert isinstance(encoder, OpenClipSettings)
    identity = training_identity(config, encoder, portions)
    with config.store.locked(progress.note):
        examples = find_examples(portions, workers=workers)
        if examples.missing:
            progress.note(f"train: {examples.missing:,} kept samples have no caption and are left out")
        reused = read_origin(config.store, MODEL).get("identity") == identity
        if not reused:
            _check_batch(config, examples)
            _fit(config, encoder, identity, (portions, examples), progress, shared)
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
            "a batch that holds a pair twice asks which of the two is right"
        )


def _fit(
    config: Training,
    encoder: OpenClipSettings,
    identity: str,
    training_set: tuple[Sequence[Portion], Examples],
    progress: Progress,
    shared: SharedBlocks | None,
) -> None:
    """Trains in a thread of its own and shows what is reported meanwhile."""
    scaling, threads = place_workers(config)
    idle_cpus = int(ray.cluster_resources().get("CPU", 1)) - scaling.num_workers * threads
    planned = plan_feed(config, encoder, *training_set, idle_cpus)
    # Beside the driver, so that the loss of a node costs neither what is known nor what is decoded elsewhere.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    alone = scaling.num_workers == 1 and config.parallel == "ddp"
    errors: list[BaseException] = []
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(shared.lent(planned)) if shared else planned
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-train-"))
        feeder = ray.remote(Feeder).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote(feed)
        stack.callback(ray.kill, feeder)
        monitor = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
        stack.callback(ray.kill, monitor)
        claim = claim_on(config.store.url)
        job = Job(config, encoder, identity, threads, feed.steps_per_deal, feeder, monitor, claim)
        work = partial(_run_alone, job, scaling) if alone else partial(_run_group, job, scaling, folder)
        # In the main thread Ray Train would take over what an interrupt does, and keep it.
        thread = threading.Thread(target=_run, args=(work, errors), name="training", daemon=True)
        thread.start()
        _show(config, monitor, thread, progress, shared)
        failure = ray.get(monitor.failure.remote())
    if failure is not None:
        raise failure
    if errors:
        lost = any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in causes(errors[0]))
        raise out_of_memory(config) if lost else errors[0]


def _run(work: Callable[[], None], errors: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        errors.append(error)


def _run_group(job: Job, scaling: ScalingConfig, folder: str) -> None:
    """Several workers: a worker group of Ray Train, which starts a lost one again."""
    # Small trainings would wait for the next of Ray Train's looks at its workers, every two seconds, to be told to end.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_SECONDS))
    TorchTrainer(
        partial(train_worker, job),
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        run_config=RunConfig(
            name=job.identity,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=job.config.resources.max_failures),
        ),
    ).fit()


def _run_alone(job: Job, scaling: ScalingConfig) -> None:
    """One worker: a task, which Ray starts again when its process is lost."""
    each = scaling.resources_per_worker or {}
    task = ray.remote(train_alone).options(
        num_cpus=each["CPU"],
        num_gpus=each.get("GPU", 0),
        max_retries=job.config.resources.max_failures,
        retry_exceptions=True,
    )
    ray.get(task.remote(job))


def _show(
    config: Training, monitor: Any, thread: threading.Thread, progress: Progress, shared: SharedBlocks | None
) -> None:
    whole = config.num_steps * config.batch_size
    with progress.step("train", whole, "samples") as step:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            if shared:
                shared.check()
            first, record = ray.get(monitor.latest.remote())
            if not record:
                continue
            step.total = whole - first  # what an earlier run has done says nothing of how fast this one is
            step.remarks = (
                f"loss {record['loss']:.3f}",
                f"{record['data_wait_share']:.0%} of the time waiting for data",
            )
            step.advance(record["samples_seen"] - first - step.rows)


def _result(config: Training, examples: Examples, reused: bool) -> TrainingResult:
    origin = read_origin(config.store, MODEL)
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
    )
