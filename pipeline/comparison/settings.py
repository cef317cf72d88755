"""The config of `winnow compare`, and what can be checked of it without reading the pool."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from operators.encoders.settings import ModelSettings
from pipeline.config.problems import KeyProblem
from pipeline.config.yaml_values import KeyPath
from pipeline.curation import Curation
from pipeline.engine import Resources
from pipeline.evaluation.task_settings import Task
from pipeline.paths import Storage, hand_down, resolve, resolve_model
from pipeline.pool import Pool, Source
from pipeline.steps.base import NAME, Step
from pipeline.steps.decontaminate import Decontaminate
from pipeline.steps.diversity import DiversitySettings
from pipeline.steps.filter import Filter
from pipeline.steps.registry import AnyStep
from pipeline.steps.semantic_dedup import Epsilon
from pipeline.storage import Store, absolute
from pipeline.training.settings import Recipe

_Name = Annotated[str, Field(pattern=f"^{NAME}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Like(_Strict):
    """A random selection.

    Attributes:
        like: another selection; as many samples are drawn as it keeps. Each seed draws others.
    """

    like: str


class Kept(_Strict):
    """What another curation has kept, as it is: it may be of another pool.

    Attributes:
        workspace: of the curation.
        snapshot: of a nightly one. Default: its latest run.
        storage: options for fsspec to open the workspace. Default: those of the comparison's in the same kind of store.
    """

    workspace: str = Field(min_length=1)
    snapshot: int | None = Field(default=None, ge=1)
    storage: Storage = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """In place of the kinds of steps."""
        return (f"snapshot {self.snapshot}" if self.snapshot else "another workspace",)


class Decontamination(_Strict):
    """What the evaluation sets hold is dropped from every selection: see `pipeline.steps.decontaminate`.

    Attributes:
        model: whose image embeddings are compared.
        epsilon: samples go when 1 - cosine is less.
    """

    model: str
    epsilon: Epsilon


def _tag(value: Any) -> str:
    if isinstance(value, Kept) or (isinstance(value, Mapping) and "workspace" in value):
        return "workspace"
    return "like" if isinstance(value, Mapping | Like) else "steps"


Selection = Annotated[
    Annotated[tuple[AnyStep, ...], Tag("steps")] | Annotated[Like, Tag("like")] | Annotated[Kept, Tag("workspace")],
    Discriminator(_tag),
]
"""Steps of a curation, none for the whole pool; `{like: NAME}`, which draws; or `{workspace: URL, snapshot: ID}`."""


DRAW = "draw"
"""What the step is called that draws a random selection."""
KEPT_OUT = "decontaminate_evaluation"
"""What the step is called that keeps the evaluation sets out of every selection."""


class Comparison(_Strict):
    """One job: a pool, what is selected of it, how a model is trained on each selection, and how that is judged.

    Attributes:
        pool: the input.
        workspace: the folder that holds everything; selections share what they have in common.
        storage: options for fsspec to open the workspace.
        seed: of every random choice of the selections, but for random selections, which go by `seeds`.
        models: that the steps use, by name.
        decontaminate: how what the evaluation sets hold is kept out of all selections. Default: not at all.
        selections: by name.
        training: how a model is trained on each; all see the same number of samples.
        evaluation: tasks, as in `winnow evaluate`.
        bootstrap: draws of test samples for the intervals.
        seeds: of the trainings. Each selection is trained once with each of them.
        baseline: the selection that the others are compared with. Default: the first.
        diversity: measured of every selection, next to the pool. Default: not at all.
        trainings_at_once: that run side by side. Default: as many as there are CPUs for, each with one thread or
            `training.resources.threads`; one where they use GPUs or several workers.
        resources: what the job may use. Changes no result.
    """

    pool: Pool
    workspace: str = Field(min_length=1)
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)
    seed: int = Field(default=0, ge=0)
    models: dict[_Name, ModelSettings] = Field(default_factory=dict)
    decontaminate: Decontamination | None = None
    selections: dict[_Name, Selection] = Field(min_length=2)
    training: Recipe
    evaluation: tuple[Task, ...] = Field(min_length=1)
    bootstrap: int = Field(default=1000, ge=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    baseline: str = ""
    diversity: DiversitySettings | None = None
    trainings_at_once: int | None = Field(default=None, ge=1)
    resources: Resources = Resources()

    @property
    def store(self) -> Store:
        """The workspace."""
        return Store(absolute(self.workspace), self.storage)

    @property
    def against(self) -> str:
        """The baseline's name."""
        return self.baseline or next(iter(self.selections))

    @property
    def randoms(self) -> tuple[str, ...]:
        """The names of the random selections."""
        return tuple(name for name, selection in self.selections.items() if isinstance(selection, Like))

    def curation(self, name: str, sources: Sequence[Source] = (), keep: int = 0, seed: int | None = None) -> Curation:
        """The curation that makes a selection.

        Args:
            name: of the selection.
            sources: of the evaluation sets, to keep out.
            keep: how many samples to draw, where it is a random one.
            seed: of the draw.
        """
        selection = self.selections[name]
        steps: list[Step] = []
        if self.decontaminate and sources:
            settings = dict(self.decontaminate)
            steps.append(Decontaminate(step="decontaminate", name=KEPT_OUT, against=tuple(sources), **settings))
        drawn = isinstance(selection, Like)
        if isinstance(selection, Like):
            steps.append(Filter(step="filter", name=DRAW, draw=True, keep=keep))
        elif not isinstance(selection, Kept):
            steps += selection
        return Curation(
            pool=self.pool,
            workspace=self.workspace,
            storage=self.storage,
            seed=seed if drawn and seed is not None else self.seed,
            models=self.models,
            steps=tuple(steps),  # type: ignore[arg-type]
            resources=self.resources,
        )

    def resolved(self) -> Self:
        """The same job with every path absolute, for workers that run in other folders."""
        steps = {name: self.curation(name).resolved() for name in self.selections}
        selections: dict[str, Any] = {}
        for name, selection in self.selections.items():
            if isinstance(selection, Kept):
                selections[name] = resolve(selection, ("workspace",))
            else:
                selections[name] = selection if isinstance(selection, Like) else steps[name].steps
        resolved = {
            "pool": next(iter(steps.values())).pool,
            "workspace": self.store.url,
            "models": {name: resolve_model(model) for name, model in self.models.items()},
            "selections": selections,
            "training": self.training.resolved(),
            "evaluation": tuple(task.resolved() for task in self.evaluation),
        }
        return self.model_copy(update=resolved)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"must name each seed once, got {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _hand_down(self) -> Self:
        return hand_down(self)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        fixed = [name for name in self.selections if name not in self.randoms]
        for name, selection in self.selections.items():
            if isinstance(selection, Kept) and self.decontaminate:
                rule = "must be steps where decontaminate is asked for: what is kept elsewhere is taken as it is"
                raise KeyProblem(("selections", name, "workspace"), f"{rule}, got {selection.workspace}")
            if isinstance(selection, Like) and selection.like not in fixed:
                rule = f"must name a selection of steps ({', '.join(fixed) or 'there is none'})"
                raise KeyProblem(("selections", name, "like"), f"{rule}, got {selection.like!r}")
        if self.against not in self.selections:
            rule = f"must name one of the selections ({', '.join(self.selections)}), got {self.baseline!r}"
            raise KeyProblem(("baseline",), rule)
        for key in ("decontaminate", "diversity"):
            settings = getattr(self, key)
            if settings is not None and settings.model not in self.models:
                known = ", ".join(self.models) or "none"
                raise KeyProblem((key, "model"), f"must name one of the models ({known}), got {settings.model!r}")
        return self

    @model_validator(mode="after")
    def _check_selections(self) -> Self:
        """Whatever a curation would find wrong with a selection is wrong here, at the place where it was written."""
        if not all(source.has_images for source in self.pool.sources):
            raise KeyProblem(("pool", "format"), "must be one with images, which models are trained on")
        added = 1 if self.decontaminate else 0
        for name in self.selections:
            try:
                self.curation(name, self.pool.sources)  # in place of the evaluation sets, which are not known yet
            except ValidationError as error:
                problem = error.errors()[0]["ctx"]["error"]
                raise KeyProblem(_place(name, problem.path, added), problem.rule) from None
        return self


def _place(name: str, path: KeyPath, added: int) -> KeyPath:
    """Where a problem of a curation's steps was written, the first of which were added."""
    match path:
        case ("steps", int(number), *below):
            return ("selections", name, number - added, *below) if number >= added else ("decontaminate", *below)
        case ("steps", *below):
            return ("selections", name, *below)
    return path
