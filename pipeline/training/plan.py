"""What a training comes to on a cluster: its identity, where its workers go, and how they are fed."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import ray
from numpy.typing import NDArray
from ray.train import ScalingConfig

from operators.encoders.settings import OpenClipSettings
from operators.errors import ConfigError
from operators.training.ordering import Order
from pipeline.config.loader import canonical
from pipeline.models import build_preprocessor, model_identity
from pipeline.placement import check_threads, most_threads, room
from pipeline.storage import digest
from pipeline.training.dealing import Dealing
from pipeline.training.decoding import BLOCK_BYTES
from pipeline.training.examples import Examples, Piece, Portion
from pipeline.training.feeder import Feed
from pipeline.training.settings import Training
from pipeline.training.towers import find_towers, input_size

TRAINING_VERSION = 2
"""Raised when the same config would give another model."""

_CHANGES_NOTHING = {
    *("workspace", "storage", "data", "model", "output", "resources", "parallel", "accumulate"),
    *("checkpoint_every", "keep_checkpoints", "log_every"),
}
"""Settings that the result does not depend on, or that the identity holds in another form."""

_WINDOW_BYTES = 2 * 2**30
_SAMPLES_PER_CLASS = 10


def training_identity(config: Training, encoder: OpenClipSettings, portions: Sequence[Portion]) -> str:
    """Names the model that comes out: equal identities, equal weights but for float rounding."""
    settings = {key: value for key, value in canonical(config).items() if key not in _CHANGES_NOTHING}
    kept = ("patch_dropout", "lock_image", "lock_text")
    towers = {key: getattr(config.model, key) for key in kept}
    data = [portion.identity for portion in portions]
    return digest(TRAINING_VERSION, settings, towers, model_identity(encoder), data)


@dataclass(frozen=True)
class Placement:
    """Where the workers of a training go.

    Attributes:
        workers: how many.
        threads: of each, a CPU each.
        on_gpus: whether each has a GPU as well.
        spread: over as many nodes as there are.
        note: what the user may not expect; empty where there is nothing.
    """

    workers: int
    threads: int
    on_gpus: bool
    spread: bool
    note: str = ""

    @property
    def resources(self) -> dict[str, float]:
        """What each takes of Ray's count."""
        return {"CPU": self.threads, **({"GPU": 1} if self.on_gpus else {})}

    @property
    def scaling(self) -> ScalingConfig:
        """The same for Ray Train."""
        return ScalingConfig(
            num_workers=self.workers,
            use_gpu=self.on_gpus,
            resources_per_worker=self.resources,
            placement_strategy="SPREAD" if self.spread else "PACK",
        )


def place_workers(config: Training) -> Placement:
    """Where the workers go, on the Ray that is up: only where its nodes hold them all at once, or they would wait.

    Raises:
        ConfigError: there is no room for them.
    """
    resources = config.resources
    gpus = room(1, on_gpus=True)
    on_gpus = gpus >= (resources.workers or 1) if resources.gpus is None else resources.gpus
    if on_gpus and not gpus:
        raise ConfigError("resources.gpus must be false where no node has a GPU and a CPU beside it, got true")
    workers = resources.workers or (gpus if on_gpus else 1)
    if on_gpus and workers > gpus:
        raise ConfigError(f"resources.workers must be at most the {gpus} GPUs of the cluster, got {workers}")
    if config.batch_size % (workers * config.accumulate):
        rule = f"a multiple of the {workers} workers times accumulate {config.accumulate}"
        raise ConfigError(f"batch_size must be {rule}, got {config.batch_size}")
    threads = resources.threads or (1 if on_gpus else max(1, most_threads(workers)))
    check_threads(threads)
    if workers > (held := room(threads, on_gpus=on_gpus)):
        rule = f"at most the {held} for which the nodes have room, with {threads} threads (resources.threads) each"
        raise ConfigError(f"resources.workers must be {rule}, got {workers}")
    note = ""
    if gpus and not on_gpus and resources.gpus is None:
        note = f"trains on CPUs: resources.workers asks for {workers} and the cluster has {gpus} GPUs"
    return Placement(workers, threads, on_gpus, resources.spread, note)


def decide_encoder(config: Training, placement: Placement) -> OpenClipSettings:
    """The model, with `precision: auto` decided: bfloat16 where the workers train on GPUs, else float32."""
    encoder = config.model.as_encoder(config.seed)
    if encoder.precision != "auto":
        return encoder
    return encoder.model_copy(update={"precision": "bfloat16" if placement.on_gpus else "float32"})


def few_classes(order: Order, pieces: Sequence[Piece]) -> str:
    """What to say of a class-labelled set whose shards are sorted by class, so that batches are of few classes.

    Samples are shuffled in windows, which are made of whole shards. In windows of ten samples a class and more nearly
    every class would be met if shards were mixed, even where some classes are far rarer than others.

    Args:
        order: of the samples.
        pieces: in the order's own order.

    Returns:
        a sentence; empty where most windows of the first epoch hold half of the classes, or nobody can tell: pieces
        with captions of their own, or windows too small for the number of classes.
    """
    windows = order.windows(0)
    if len(windows) < 2 or not all(piece.classes for piece in pieces):
        return ""
    known, size = _count_classes(pieces), order.window
    found = median(_count_classes([pieces[i] for i in window.pieces]) for window in windows)
    if size < _SAMPLES_PER_CLASS * known or found >= known / 2:
        return ""
    return (
        f"the shards are sorted by class: the {size:,} samples that are shuffled together are of {found:g} of the "
        f"{known:,} classes, and so are the batches: raise shuffle_window, or write the shards in random order"
    )


def _count_classes(pieces: Sequence[Piece]) -> int:
    """The classes that pieces have between them; portions have lists of their own, which share none."""
    bits_of: dict[int, NDArray[np.uint8]] = {}
    for piece in pieces:
        bits = np.frombuffer(piece.classes, np.uint8)
        bits_of[piece.portion] = bits_of.get(piece.portion, bits) | bits
    return sum(int(np.unpackbits(bits).sum()) for bits in bits_of.values())


def plan_feed(
    config: Training, encoder: OpenClipSettings, portions: Sequence[Portion], examples: Examples, idle_cpus: int
) -> Feed:
    """How the workers are fed.

    Args:
        config: of the training.
        encoder: the model, its precision decided.
        portions: of the training set.
        examples: what was found in them.
        idle_cpus: of the cluster, while it trains.
    """
    preprocessor = build_preprocessor(encoder)
    height, width = input_size(find_towers(encoder, config.loss))
    length = preprocessor.text(["a"]).shape[1]
    row_bytes = height * width * 3 + length * 4 + 16
    sentences = {}
    for i, portion in enumerate(portions):
        if (labels := portion.labels) is not None:
            tokens = preprocessor.text(labels.sentences())
            sentences[i] = tokens.reshape(len(labels.templates), len(labels.classes), length)
    pieces = examples.pieces
    order = Order(
        seed=config.seed,
        names=tuple(piece.name for piece in pieces),
        rows=tuple(piece.rows for piece in pieces),
        weights=tuple(piece.weight for piece in pieces),
        window=config.shuffle_window or max(1, _WINDOW_BYTES // row_bytes),
    )
    cache_bytes = config.resources.cache_bytes
    if cache_bytes is None:
        cache_bytes = int(ray.cluster_resources().get("object_store_memory", 0)) // 4
    keep_all = examples.rows * row_bytes <= cache_bytes
    return Feed(
        pieces=pieces,
        order=order,
        model=encoder,
        dealing=Dealing(config.seed, config.augment, sentences),
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        rows_per_block=max(1, BLOCK_BYTES // row_bytes),
        # What is decoded once may take every CPU: until its first window is there, training waits.
        decoders=int(ray.cluster_resources().get("CPU", 1)) if keep_all else max(1, idle_cpus),
        keep_all=keep_all,
    )
