"""The config of `winnow train`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from operators.encoders.settings import Decode, Normalization, OpenClipSettings, Precision
from operators.training.augmentation import Augment
from operators.training.schedules import Shape
from pipeline.config.problems import KeyProblem
from pipeline.paths import Storage, hand_down, resolve, resolve_source
from pipeline.pool import Pool, names_password
from pipeline.storage import Store, absolute

PLACE = "{c}"
"""Where a template takes the name of the class, as in DataComp's template files."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Captions(_Strict):
    """Captions for samples that have a class and no text.

    Attributes:
        field: of a sample's metadata that holds the class: its number, or its name.
        classes: their names in the order of their numbers, or the path of a JSON list or of a text of a name a line.
        templates: sentences with `{c}` for the class, or the path of a text of one a line. Each time that a sample is
            seen, one of them is drawn.
        storage: options for fsspec to open the files. Default: those of a workspace in the same kind of store.
    """

    field: str = Field(min_length=1)
    classes: tuple[str, ...] | str = Field(min_length=1)
    templates: tuple[str, ...] | str = Field(default=("a photo of a {c}.",), min_length=1)
    storage: Storage = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.templates, tuple):
            for i, template in enumerate(self.templates):
                if PLACE not in template:
                    raise KeyProblem(("templates", i), f"must hold {PLACE} for the class, got {template!r}")
        return self


class Data(_Strict):
    """One part of the training set: all sound samples of a pool, or the kept samples of a curated workspace.

    Attributes:
        pool: shards, as in `winnow curate`.
        workspace: of a curation; its ledger's verdict is applied while loading. Nothing is rewritten.
        snapshot: of a nightly workspace. Default: its latest run.
        storage: options for fsspec to open the workspace.
        weight: how often each of its samples is seen in an epoch; on top of the weights of the pool's sources.
        captions: how samples with a class become pairs. Default: their own captions.
    """

    pool: Pool | None = None
    workspace: str | None = Field(default=None, min_length=1)
    snapshot: int | None = Field(default=None, ge=1)
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    captions: Captions | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.pool is None) == (self.workspace is None):
            raise ValueError(f"must name a pool or a workspace, got {'neither' if self.pool is None else 'both'}")
        if self.snapshot is not None and self.workspace is None:
            raise KeyProblem(("snapshot",), f"must be given with a workspace, got {self.snapshot} with a pool")
        for i, source in enumerate(self.pool.sources if self.pool else ()):
            if not source.has_images:
                raise KeyProblem(("pool", "sources", i, "format"), f"must be one with images, got {source.format}")
        return self

    def resolved(self) -> Self:
        """The same with every path absolute."""
        changes: dict[str, Any] = {}
        if self.pool is not None:
            sources = tuple(resolve_source(source) for source in self.pool.sources)
            changes["pool"] = self.pool.model_copy(update={"sources": sources})
        if self.captions is not None:
            paths = [name for name in ("classes", "templates") if isinstance(getattr(self.captions, name), str)]
            changes["captions"] = resolve(self.captions, paths)
        return resolve(self.model_copy(update=changes), ("workspace",))


class TrainedModel(_Strict):
    """The two towers.

    Attributes:
        name: one of open_clip's, or a JSON config of its form, which may name a tower of timm.
        weights: to start from: `random`, a file or export folder (local or any fsspec URL), or a tag of open_clip's.
        precision: `auto` is bfloat16 where the workers train on GPUs, else float32.
        preprocess: replaces parts of the image transform.
        decode: `fast` lets JPEGs be decoded at a reduced scale.
        patch_dropout: share of an image's patches that are left out while training.
        lock_image: true trains the text tower only; a number leaves so many of the last groups unlocked.
        lock_text: the same for the text tower and its last layers.
        grad_checkpointing: compute activations twice rather than keep them: less memory, more time.
        storage: options for fsspec to open the weights. Default: those of a workspace in the same kind of store.
    """

    name: str = Field(min_length=1)
    weights: str = Field(default="random", min_length=1)
    precision: Precision = "auto"
    preprocess: Normalization = Normalization()
    decode: Decode = "exact"
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    lock_image: bool | Annotated[int, Field(ge=0)] = False
    lock_text: bool | Annotated[int, Field(ge=0)] = False
    grad_checkpointing: bool = False
    storage: Storage = None

    def as_encoder(self, seed: int) -> OpenClipSettings:
        """The model as the rest of Winnow knows it; the seed draws random weights."""
        same = ("name", "weights", "precision", "preprocess", "decode", "storage")
        settings = {key: getattr(self, key) for key in same}
        return OpenClipSettings(library="open_clip", seed=seed, **settings)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if names_password(self.weights):
            raise KeyProblem(("weights",), "must not hold a password: give it in the environment")
        if _is_whole(self.lock_image) and _is_whole(self.lock_text):
            rule = f"must be false where lock_image is {_word(self.lock_image)}, got {_word(self.lock_text)}"
            raise KeyProblem(("lock_text",), f"{rule}: nothing would be trained")
        for key in ("lock_image", "lock_text"):
            if (lock := getattr(self, key)) is not False and self.weights == "random":
                rule = "must be false where weights is random, as what is locked stays random"
                raise KeyProblem((key,), f"{rule}, got {_word(lock)}")
        return self


def _is_whole(lock: bool | int) -> bool:
    """Whether a tower is locked without a group that is left out."""
    return lock is True or (lock is not False and lock == 0)


def _word(value: bool | int) -> str:
    """As in YAML."""
    return str(value).lower()


class Optimizer(_Strict):
    """AdamW. Norms, biases, vectors and the logit scale do not decay."""

    learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.98, ge=0, lt=1)
    eps: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    clip_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Schedule(_Strict):
    """How the learning rate goes: see `operators.training.schedules`."""

    shape: Shape = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    cooldown_steps: int = Field(default=0, ge=0)
    final: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.shape == "cooldown") != (self.cooldown_steps > 0):
            rule = "must be positive where shape is cooldown, and only there"
            raise KeyProblem(("cooldown_steps",), f"{rule}, got {self.cooldown_steps} and {self.shape}")
        if self.shape == "constant" and self.final:
            raise KeyProblem(("final",), f"must be 0 where shape is constant, which never falls, got {self.final}")
        return self


class TrainingResources(_Strict):
    """What a training may use. Changes no result, but for float rounding and the draws of patch dropout.

    Attributes:
        workers: that train, each with a share of every batch. Default: one a GPU, or one.
        threads: of each worker, a CPU each. Default: on CPUs as many as all workers have room for, on a GPU one.
        gpus: whether workers train on a GPU each. Default: where the cluster has as many as there are workers.
        spread: put the workers on as many nodes as there are.
        max_failures: lost workers or nodes from which the training goes on by itself, and waits in vain for their room.
        cpus: that Ray may use when the job starts it. Default: all of the machine.
        object_store_bytes: shared memory for decoded samples when the job starts Ray. Default: Ray's own choice.
        cache_bytes: a training set that takes less stays decoded between epochs. Default: a quarter of the store.
    """

    workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    gpus: bool | None = None
    spread: bool = False
    max_failures: int = Field(default=3, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    object_store_bytes: int | None = Field(default=None, ge=80_000_000)
    cache_bytes: int | None = Field(default=None, ge=0)


def _none_word(value: Any) -> Any:
    return None if value == "none" else value


class Recipe(_Strict):
    """How a model is trained, whatever on.

    Attributes:
        model: what is trained.
        loss: `clip` or `siglip`.
        samples_seen: pairs, repetitions counted; rounded up to whole batches.
        batch_size: pairs that are compared with each other, over all workers and pieces.
        accumulate: pieces in which a worker computes its share of a batch; the batch stays whole. Not for towers with
            batch norm, which would see the pieces.
        optimizer, schedule: of the weights.
        augment: what is changed of an image each time; `none` is the model's own evaluation transform.
        average_with_start: share of the starting weights in the finished model. Batch norms of the image tower then get
            the statistics of the first batches of the training.
        shuffle_window: samples that are shuffled together; a smaller set is permuted whole. Default: as many as take
            2 GiB decoded.
        checkpoint_every: steps.
        keep_checkpoints: how many of the newest, until the model is written.
        log_every: steps between lines of the metrics.
        parallel: `ddp` copies the model to every worker, `fsdp` shares it out.
        resources: what it may use.
    """

    model: TrainedModel
    loss: Literal["clip", "siglip"] = "clip"
    samples_seen: int = Field(ge=1)
    batch_size: int = Field(default=4096, ge=2)
    accumulate: int = Field(default=1, ge=1)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augment: Annotated[Augment | None, BeforeValidator(_none_word)] = None
    average_with_start: float | None = Field(default=None, gt=0, lt=1)
    shuffle_window: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=1000, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    resources: TrainingResources = TrainingResources()

    @property
    def num_steps(self) -> int:
        """Batches of the whole training."""
        return -(-self.samples_seen // self.batch_size)

    def resolved(self) -> Self:
        """The same with every path absolute, for workers that run in other folders."""
        model = self.model
        paths = [key for key in ("name", "weights") if _is_path(model, key)]
        return self.model_copy(update={"model": resolve(model, paths)})

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        if self.average_with_start is not None and self.model.weights == "random":
            rule = "must be left out where model.weights is random, as random weights are nothing to keep"
            raise KeyProblem(("average_with_start",), f"{rule}, got {self.average_with_start}")
        if self.batch_size % ((self.resources.workers or 1) * self.accumulate):
            workers = f"resources.workers {self.resources.workers or 1}"
            rule = f"must be a multiple of {workers} times accumulate {self.accumulate}"
            raise KeyProblem(("batch_size",), f"{rule}, got {self.batch_size}")
        ramps = self.schedule.warmup_steps + self.schedule.cooldown_steps
        if ramps > self.num_steps:
            rule = f"must leave room for all in the {self.num_steps} steps of the training"
            raise KeyProblem(("schedule",), f"{rule}, got {ramps} steps of warm-up and cooldown")
        return self


class Training(Recipe):
    """One training: a recipe, what it is applied to, and where to.

    Attributes:
        workspace: the folder that holds everything it writes. The same command goes on where it was stopped.
        storage: options for fsspec to open the workspace.
        seed: of every random choice.
        data: what is trained on.
        output: a folder for the finished model besides `<workspace>/model`.
    """

    workspace: str = Field(min_length=1)
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)
    seed: int = Field(default=0, ge=0)
    data: tuple[Data, ...] = Field(min_length=1)
    output: str | None = Field(default=None, min_length=1)

    @property
    def store(self) -> Store:
        """The workspace."""
        return Store(absolute(self.workspace), self.storage)

    def resolved(self) -> Self:
        """The same training with every path absolute, for workers that run in other folders."""
        data = tuple(data.resolved() for data in self.data)
        return resolve(super().resolved().model_copy(update={"data": data}), ("workspace", "output"))

    @model_validator(mode="after")
    def _hand_down(self) -> Self:
        return hand_down(self)

    @model_validator(mode="after")
    def _check_urls(self) -> Self:
        for key in ("workspace", "output"):
            if names_password(getattr(self, key) or ""):
                raise KeyProblem((key,), "must not hold a password: give it under storage or in the environment")
        return self


def _is_path(model: TrainedModel, key: str) -> bool:
    """As in a curation: tags are words without a dot or a slash; a folder of such a name can be written `./name`."""
    value: str = getattr(model, key)
    return value.endswith(".json") if key == "name" else "." in value or "/" in value
