"""What each training worker does: batch after batch, from the newest checkpoint to the finished model."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from operators.encoders.settings import OpenClipSettings
from operators.errors import ConfigError, TrainingDiverged, WinnowError, WorkspaceError
from operators.hashing import generator
from operators.training.averaging import average_states, renew_statistics
from operators.training.gradients import Batch, backward_in_pieces, backward_whole
from operators.training.losses import Loss, clip_loss, siglip_loss
from operators.training.parameters import clamp_scale, decay_groups, has_batch_norm
from operators.training.schedules import learning_rate
from operators.uids import join_uids
from pipeline.claim import Claim
from pipeline.failures import winnow_error
from pipeline.storage import Store
from pipeline.training import freed_memory
from pipeline.training.batches import Batches
from pipeline.training.checkpoints import (
    home_of,
    load_checkpoint,
    newest_sound,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from pipeline.training.dealing import Hand
from pipeline.training.finished import MODEL, read_origin, write_model
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.parallel import (
    Parallel,
    average_gradients,
    clip_gradients,
    get_state,
    get_weights,
    gradient_norm,
    mean_over_workers,
    parallelise,
    set_state,
)
from pipeline.training.settings import Training
from pipeline.training.towers import build_towers, export_config, find_towers, forward_of, pixel_reader

LOSSES: dict[str, Loss] = {"clip": clip_loss, "siglip": siglip_loss}
_STATISTICS_BATCHES = 32
"""What the batch norms of an averaged model are given to see."""


@dataclass(frozen=True)
class Job:
    """What every worker of a training is told.

    Attributes:
        config: with absolute paths.
        encoder: the model, its precision decided.
        identity: digest of all that the result depends on.
        threads: of each worker.
        steps_per_deal: as the feeder deals.
        feeder, monitor: actors.
        claim: the driver's on the workspace, checked before anything there is replaced.
    """

    config: Training
    encoder: OpenClipSettings
    identity: str
    threads: int
    steps_per_deal: int
    feeder: Any
    monitor: Any
    claim: Claim | None = None

    @property
    def folder(self) -> str:
        """Where checkpoints lie, relative to the workspace."""
        return f"training/{self.identity}"


def train_worker(job: Job) -> None:
    """Trains as one of the workers of Ray Train. Raises as `_attempt` does."""
    _attempt(job, ray.train.torch.get_device())


def train_alone(job: Job) -> None:
    """Trains as the only worker, in a task of Ray's. Raises as `_attempt` does.

    A worker group of Ray Train comes with five processes that look after it, each of which takes seconds to start, and
    a task finds a process that has everything imported: of many small trainings, that is most of the time.
    """
    own = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=own, rank=0, world_size=1)
    try:
        _attempt(job, torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
    finally:
        dist.destroy_process_group()


def _attempt(job: Job, device: torch.device) -> None:
    """Trains as one of a process group, unless an earlier attempt found out that it cannot be done.

    An error of ours is reported; where all workers have it, and so none waits for another, it is not raised: Ray would
    try again, and say so.

    Raises:
        Exception: what is no error of ours may be mended by another attempt from the last checkpoint.
    """
    if ray.get(job.monitor.failure.remote()) is not None:
        return
    try:
        with freed_memory.kept():
            _Worker(job, device).run()
    except Exception as error:
        if (ours := explain(error, job.config)) is not None:
            ray.get(job.monitor.fail.remote(ours))
        if ours is None or not (dist.get_world_size() == 1 or isinstance(ours, TrainingDiverged)):
            raise


def explain(error: BaseException, config: Training) -> WinnowError | None:
    """The error of ours behind an exception: one that was raised on purpose, or what memory there was not."""
    if (ours := winnow_error(error)) is not None:
        return ours
    if isinstance(error, MemoryError | torch.OutOfMemoryError | ray.exceptions.OutOfMemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    ):
        return out_of_memory(config)
    return None


def out_of_memory(config: Training) -> ConfigError:
    """Says which settings decide how much memory a worker takes."""
    return ConfigError(
        "a training worker ran out of memory: raise accumulate "
        f"(got {config.accumulate}; the batch stays whole) or resources.workers (got {config.resources.workers or 1}), "
        f"lower batch_size (got {config.batch_size}), or set model.precision bfloat16 (got {config.model.precision}) "
        "or model.grad_checkpointing"
    )


def _of_the_first(value: int | None) -> Any:
    """The value that the first worker has."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


class _Worker:
    """One worker from its newest checkpoint on."""

    def __init__(self, job: Job, device: torch.device) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.config = job.config
        self.store: Store = job.config.store
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = device
        architecture = find_towers(job.encoder, self.config.loss)
        self.export = export_config(architecture)
        self.read_pixels = pixel_reader(architecture, device)
        model = build_towers(self.config.model, job.encoder, self.config.loss).to(device)
        self.parallel: Parallel = parallelise(model, self.config.parallel)
        settings = self.config.optimizer
        self.optimizer = torch.optim.AdamW(
            decay_groups(model.named_parameters(), settings.weight_decay),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=self.config.parallel == "ddp",
        )
        autocast = job.encoder.precision == "bfloat16"
        self.forward = forward_of(
            self.parallel.call, partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=autocast)
        )
        self.step, self.seconds, self.waited, self.loss = 0, 0.0, 0.0, math.nan

    def run(self) -> None:
        """Goes on from the newest checkpoint to the end, which a lost attempt may have come to."""
        if self._is_finished():
            return
        self._resume()
        log = None
        if self.rank == 0:
            log = MetricsLog(self.store, self.step, self.job.folder, f"tensorboard/{self.job.identity}")
        if self.step < self.config.num_steps:
            self._train(log)
        if log is not None:
            log.close()
        self._finish()

    def _is_finished(self) -> bool:
        """Whether the first worker finds the model, whose checkpoints are gone."""
        found = self.rank == 0 and read_origin(self.store, MODEL).get("identity") == self.job.identity
        return bool(_of_the_first(int(found)))

    def _resume(self) -> None:
        """Everybody goes on from the newest sound checkpoint, which the first worker finds.

        Raises:
            WorkspaceError: this worker does not find it.
        """
        step = _of_the_first(newest_sound(self.store, self._checkpoints) if self.rank == 0 else 0)
        if not step:
            return
        try:
            checkpoint = read_checkpoint(self.store, home_of(self._checkpoints, step))
        except FileNotFoundError as error:
            raise WorkspaceError(
                f"{self.store.url} must be a folder that every node sees, got no checkpoint of step {step} on the node "
                f"of worker {self.rank}"
            ) from error
        set_state(self.parallel, self.optimizer, load_checkpoint(self.store, checkpoint))
        self.step, self.loss = checkpoint.step, checkpoint.loss
        self.seconds, self.waited = checkpoint.seconds, checkpoint.waited

    def _train(self, log: MetricsLog | None) -> None:
        config = self.config
        if self.rank == 0:
            self.job.monitor.begin.remote(self.step * config.batch_size)
        started = ray.get(self.job.feeder.start.remote(self.workers, self.step)) if self.rank == 0 else None
        attempt = _of_the_first(started)
        feed = Batches(
            self.job.feeder,
            attempt,
            self.rank,
            config.num_steps - self.step,
            local_size=config.batch_size // self.workers,
            steps_per_deal=self.job.steps_per_deal,
        )
        with feed:
            before, since, waited = self.step, time.perf_counter(), 0.0
            for hand in feed:
                logs = (self.step + 1) % config.log_every == 0 or self.step + 1 == config.num_steps
                rate, norm = self._step(hand)
                if logs:
                    seconds = time.perf_counter() - since
                    record = {
                        "step": self.step,
                        "samples_seen": self.step * config.batch_size,
                        "loss": self.loss,
                        "learning_rate": rate,
                        "logit_scale": self.parallel.model.logit_scale.exp().item(),
                        "grad_norm": norm,
                        "samples_per_second": (self.step - before) * config.batch_size / seconds,
                        "data_wait_share": (feed.waited - waited) / seconds,
                    }
                    self.seconds, self.waited = self.seconds + seconds, self.waited + feed.waited - waited
                    before, since, waited = self.step, time.perf_counter(), feed.waited
                    if log is not None:
                        log.add(record)
                        self.job.monitor.log.remote(record)
                if self.step % config.checkpoint_every == 0 or self.step == config.num_steps:
                    self._save(log)

    def _step(self, hand: Hand) -> tuple[float, float]:
        """One step of the optimiser. Returns the learning rate, and the norm of the gradient before it was clipped.

        Raises:
            TrainingDiverged: before the weights were touched.
        """
        config = self.config
        schedule = config.schedule.model_dump()
        rate = learning_rate(self.step, peak=config.optimizer.learning_rate, num_steps=config.num_steps, **schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = mean_over_workers(self._backward(hand))
        if not math.isfinite(self.loss):
            raise self._diverged(hand, f"the loss must stay a finite number, got {self.loss}")
        average_gradients(self.parallel)
        norm = gradient_norm(self.parallel)
        if not math.isfinite(norm):
            raise self._diverged(hand, f"the gradient's norm must stay a finite number, got {norm}")
        if (limit := config.optimizer.clip_grad_norm) is not None:
            clip_gradients(self.parallel, limit, norm)
        self.optimizer.step()
        clamp_scale(self.parallel.model.logit_scale)
        self.step += 1
        return rate, norm

    def _backward(self, hand: Hand) -> Tensor:
        tokens = torch.tensor(hand.tokens_NL).to(self.device).long()
        batch, loss = Batch(self.read_pixels(hand.pixels_NHWC), tokens), LOSSES[self.config.loss]
        pieces = self.config.accumulate
        if pieces == 1:
            return backward_whole(self.forward, batch, loss, self._reseed)
        local = self.parallel.local
        return backward_in_pieces(self.forward, batch, loss, self._reseed, pieces=pieces, local=local)

    def _reseed(self, piece: int) -> None:
        labels = (str(self.step), str(self.rank), str(piece))
        torch.manual_seed(int(generator(self.config.seed, "training dropout", *labels).integers(2**63)))

    def _save(self, log: MetricsLog | None) -> None:
        state = get_state(self.parallel, self.optimizer)
        if log is not None:
            self._check_claim()
            log.flush()
        # The first worker has the whole state, and all must stop with it.
        if not _of_the_first(int(all(bool(tensor.isfinite().all()) for tensor in state["model"].values()))):
            raise TrainingDiverged(
                f"the weights must stay finite numbers, got others after step {self.step}: {self._advice}"
            )
        if log is not None:
            save_checkpoint(self.store, self._checkpoints, state, self._facts())
            prune_checkpoints(self.store, self._checkpoints, self.config.keep_checkpoints)

    @property
    def _checkpoints(self) -> str:
        return f"{self.job.folder}/checkpoints"

    @property
    def _advice(self) -> str:
        return (
            f"lower optimizer.learning_rate (got {self.config.optimizer.learning_rate}), lengthen "
            "schedule.warmup_steps or set optimizer.clip_grad_norm"
        )

    def _check_claim(self) -> None:
        """A worker outlives a driver that is stopped, not ended: another run may be at work here by now."""
        if self.job.claim is not None:
            self.job.claim.check()

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples_seen": self.step * self.config.batch_size,
            "seconds": round(self.seconds, 3),
            "waited": round(self.waited, 3),
            "loss": self.loss,
        }

    def _diverged(self, hand: Hand, what: str) -> TrainingDiverged:
        """Saves the state before the step and the uids of its batch; every worker comes here with the same number."""
        hands: list[Any] = [None] * self.workers
        dist.all_gather_object(hands, hand.uids_N2)
        state = get_state(self.parallel, self.optimizer)
        folder = f"{self.job.folder}/diverged"
        if self.rank == 0:
            save_checkpoint(self.store, folder, state, {**self._facts(), "loss": 0.0})
            uids_N2 = np.concatenate(hands)
            uids = join_uids(uids_N2[:, 0], uids_N2[:, 1]).hex()
            lines = [uids[start : start + 32] for start in range(0, len(uids), 32)]
            self.store.replace(f"{folder}/uids.txt", "\n".join([*lines, ""]).encode())
        place = f"{self.store.url}/{folder}"
        return TrainingDiverged(
            f"{what} in step {self.step + 1}: the state before it and the uids of its batch (uids.txt) are in {place}; "
            f"{self._advice}"
        )

    def _finish(self) -> None:
        weights = get_weights(self.parallel)
        if self.rank != 0:
            return
        if (share := self.config.average_with_start) is not None:
            weights = self._averaged(weights, share)
        origin = {"identity": self.job.identity, **self._facts()}
        self._check_claim()
        write_model(self.store, MODEL, weights, self.export, origin)
        self.store.remove(self._checkpoints)

    def _averaged(self, weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """The finished weights averaged with those of the start, and what the batch norms of the average then see."""
        model = build_towers(self.config.model, self.job.encoder, self.config.loss)
        average = average_states(model.state_dict(), weights, share)
        if not has_batch_norm(model.visual):
            return average
        model.load_state_dict(average)
        renew_statistics(model.visual.to(self.device), self._first_pixels())
        return dict(model.state_dict())

    def _first_pixels(self) -> Iterator[Tensor]:
        """The images of the training's first batches, in pieces of the size that a worker trains on."""
        config, feeder = self.config, self.job.feeder
        steps, size = min(_STATISTICS_BATCHES, config.num_steps), config.batch_size
        attempt = ray.get(feeder.start.remote(1, 0))
        deal = self.job.steps_per_deal
        with Batches(feeder, attempt, 0, steps, local_size=size, steps_per_deal=deal) as feed:
            for hand in feed:
                for start in range(0, size, size // self.workers):
                    yield self.read_pixels(hand.pixels_NHWC[start : start + size // self.workers])
