"""The config of `winnow curate`, and what can be checked of it without reading the pool."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.encoders.settings import ModelSettings, PixelsSettings
from pipeline.config.problems import KeyProblem
from pipeline.engine import Resources
from pipeline.export.settings import Export
from pipeline.paths import resolve, resolve_source
from pipeline.pool import Pool, names_password
from pipeline.steps.base import NAME, Step
from pipeline.steps.registry import AnyStep
from pipeline.storage import Store, absolute
from pipeline.stream.work import SAMPLES_SCHEMA

_RESERVED = {"samples", "unique_uid", "ledger", "report", "pieces", "pool", "exports", *SAMPLES_SCHEMA.names}
_WITH_TEXT = {"open_clip"}


class Curation(BaseModel):
    """One job: a pool, a workspace, and the steps between them.

    Attributes:
        pool: the input.
        workspace: the folder that holds every artifact.
        storage: options for fsspec to open the workspace.
        seed: of every random choice.
        models: by name; a step names the one it uses.
        steps: in order.
        export: what is written outside the workspace in the end.
        report: whether `report.html` is written.
        resources: what the run may use. Changes no result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Pool
    workspace: str = Field(min_length=1)
    storage: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0)
    models: dict[Annotated[str, Field(pattern=f"^{NAME}$")], ModelSettings] = Field(default_factory=dict)
    steps: tuple[AnyStep, ...] = ()
    export: tuple[Export, ...] = ()
    report: bool = True
    resources: Resources = Resources()

    @property
    def store(self) -> Store:
        """The workspace."""
        return Store(absolute(self.workspace), self.storage)

    def resolved(self) -> Self:
        """The same job with every path absolute, for workers and later commands that run in other folders."""
        sources = [resolve_source(source) for source in self.pool.sources]
        resolved = {
            "pool": self.pool.model_copy(update={"sources": tuple(sources)}),
            "workspace": self.store.url,
            "models": {name: _resolve_model(model) for name, model in self.models.items()},
            "steps": tuple(step.resolved() for step in self.steps),
            "export": tuple(resolve(export, ("path",)) for export in self.export),
        }
        return self.model_copy(update=resolved)

    @model_validator(mode="after")
    def _check_passwords(self) -> Self:
        urls: dict[tuple[str | int, ...], str] = {("workspace",): self.workspace}
        urls |= {("export", i, "path"): export.path for i, export in enumerate(self.export)}
        urls |= {("models", name, "weights"): getattr(model, "weights", "") for name, model in self.models.items()}
        for key, url in urls.items():
            if names_password(url):
                raise KeyProblem(key, "must not hold a password: give it under storage or in the environment")
        return self

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        titles: set[str] = set()
        scores: set[str] = set()
        for i, step in enumerate(self.steps):
            if step.title in titles | _RESERVED:
                taken = "is taken by an earlier step" if step.title in titles else "is reserved"
                raise KeyProblem(("steps", i, "name"), f"must be unique, got {step.title!r}, which {taken}")
            titles.add(step.title)
            self._check_models(i, step)
            for score in step.scores():
                if score not in scores:
                    known = ", ".join(sorted(scores)) or "none"
                    raise KeyProblem(
                        ("steps", i), f"must read the score of an earlier step, got {score!r} (there are: {known})"
                    )
            if step.gives_score:
                scores.add(step.title)
        targets = [(export.format, export.path) for export in self.export]
        for i, target in enumerate(targets):
            if target in targets[:i]:
                raise KeyProblem(("export", i, "path"), f"must not be written twice in one format, got {target[1]!r}")
        return self

    def _check_models(self, i: int, step: Step) -> None:
        for model, modality in step.embeddings():
            if model not in self.models:
                known = ", ".join(self.models) or "none"
                raise KeyProblem(("steps", i, "model"), f"must name one of the models ({known}), got {model!r}")
            library = self.models[model].library
            if modality == "text" and library not in _WITH_TEXT:
                raise KeyProblem(
                    ("steps", i, "model"), f"must name a model with a text tower, got {model!r} of library {library}"
                )


def _resolve_model(model: ModelSettings) -> ModelSettings:
    """`hub`, `random` and tags are words without a dot or a slash; a folder of such a name can be written `./name`."""
    if isinstance(model, PixelsSettings):
        return model
    names = ["weights"] if "." in model.weights or "/" in model.weights else []
    return resolve(model, [*names, "name"] if model.name.endswith(".json") else names)
