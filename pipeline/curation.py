"""The config of `winnow curate`, and what can be checked of it without reading the pool."""

from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.encoders.settings import ModelSettings, StoredSettings
from pipeline.config.problems import KeyProblem
from pipeline.config.yaml_values import KeyPath
from pipeline.engine import Resources
from pipeline.export.settings import ClipRetrievalExport, Export, SemdedupExport, needs_images
from pipeline.models import mismatch
from pipeline.paths import Storage, hand_down, resolve, resolve_model, resolve_source
from pipeline.pool import Pool, names_password
from pipeline.steps.base import NAME, Step
from pipeline.steps.registry import AnyStep
from pipeline.storage import Store, absolute
from pipeline.stream.work import SAMPLES_SCHEMA

_RESERVED = {
    *("samples", "unique_uid", "ledger", "report", "pieces", "damaged", "pool", "exports", "snapshots"),
    *SAMPLES_SCHEMA.names,
}


class GivenSnapshot(BaseModel):
    """A snapshot of a nightly curation, whose findings a run applies in place of its own.

    Attributes:
        workspace: of the nightly curation.
        snapshot: its id.
        storage: options for fsspec to open the workspace. Default: those of the run's workspace in the same kind of
            store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    workspace: str = Field(min_length=1)
    snapshot: int = Field(ge=1)
    storage: Storage = None

    @property
    def store(self) -> Store:
        """The workspace."""
        return Store(absolute(self.workspace), self.storage or {})


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
        given: a snapshot whose thresholds, centroids and trained filters are applied, and whose duplicates stay
            duplicates; all else is computed anew. The steps that they belong to must have the same settings.
        resources: what the run may use. Changes no result, but that `gpus` decides a precision of `auto`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    pool: Pool
    workspace: str = Field(min_length=1)
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)
    seed: int = Field(default=0, ge=0)
    models: dict[Annotated[str, Field(pattern=f"^{NAME}$")], ModelSettings] = Field(default_factory=dict)
    steps: tuple[AnyStep, ...] = ()
    export: tuple[Export, ...] = ()
    report: bool = True
    given: GivenSnapshot | None = None
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
            "models": {name: resolve_model(model) for name, model in self.models.items()},
            "steps": tuple(step.resolved() for step in self.steps),
            "export": tuple(resolve(export, ("path",)) for export in self.export),
            "given": self.given and resolve(self.given, ("workspace",)),
        }
        return self.model_copy(update=resolved)

    @model_validator(mode="after")
    def _hand_down(self) -> Self:
        return hand_down(self)

    @model_validator(mode="after")
    def _check_passwords(self) -> Self:
        urls: dict[tuple[str | int, ...], str] = {("workspace",): self.workspace}
        urls |= {("given", "workspace"): self.given.workspace} if self.given else {}
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
            self._check_names(("steps", i), step, scores)
            if step.gives_score:
                scores.add(step.title)
        targets = [(export.format, export.path) for export in self.export]
        for i, target in enumerate(targets):
            if target in targets[:i]:
                raise KeyProblem(("export", i, "path"), f"must not be written twice in one format, got {target[1]!r}")
        return self

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        for name, model in self.models.items():
            if rule := mismatch(self.pool, model):
                raise KeyProblem(("models", name, "library"), rule)
        if all(source.has_images for source in self.pool.sources):
            return self
        if not any(source.has_images for source in self.pool.sources):
            for i, step in enumerate(self.steps):
                _check_without_images(("steps", i), step)
        for i, export in enumerate(self.export):
            if needs_images(export):
                rule = f"must be a format without images for a pool of embeddings, got {export.format}"
                raise KeyProblem(("export", i, "format"), rule)
        return self

    @model_validator(mode="after")
    def _check_exports(self) -> Self:
        for i, export in enumerate(self.export):
            if not isinstance(export, ClipRetrievalExport | SemdedupExport):
                continue
            if "image" not in getattr(self.models.get(export.model), "modalities", ()):
                known = ", ".join(self.models) or "none"
                rule = f"must name a model that embeds images (there are: {known}), got {export.model!r}"
                raise KeyProblem(("export", i, "model"), rule)
            clusterings = [name for step in self.steps for name in step.clusterings]
            if isinstance(export, SemdedupExport) and export.step not in clusterings:
                known = ", ".join(clusterings) or "none"
                rule = f"must name one of the steps that cluster the pool ({known}), got {export.step!r}"
                raise KeyProblem(("export", i, "step"), rule)
        return self

    def _check_names(self, path: KeyPath, step: Step, scores: Collection[str]) -> None:
        """Checks the models and scores that a step names, or each step inside it."""
        for below, inner in step.inner:
            self._check_names((*path, *below), inner, scores)
        if step.inner:
            return
        for model, modality in step.embeddings():
            if model not in self.models:
                known = ", ".join(self.models) or "none"
                raise KeyProblem((*path, "model"), f"must name one of the models ({known}), got {model!r}")
            settings = self.models[model]
            if modality not in settings.modalities:
                stored = isinstance(settings, StoredSettings)
                wanted = f"that names its {modality} array" if stored else "with a text tower"
                raise KeyProblem(
                    (*path, "model"), f"must name a model {wanted}, got {model!r} of library {settings.library}"
                )
        for score in step.scores():
            if score not in scores:
                known = ", ".join(sorted(scores)) or "none"
                raise KeyProblem(path, f"must read the score of an earlier step, got {score!r} (there are: {known})")


def _check_without_images(path: KeyPath, step: Step) -> None:
    """Refuses what looks at images, in a pool of embeddings: a step, or a step inside it."""
    if step.step == "exact_dedup":
        rule = "must be semantic_dedup for a pool of embeddings, which has no images to compare"
        raise KeyProblem((*path, "step"), f"{rule}, got {step.step}")
    if step.looks_at_images:
        rule = "must be one that reads embeddings for a pool of embeddings, which has no images"
        raise KeyProblem((*path, "step"), f"{rule}, got {step.step}")
    for below, inner in step.inner:
        _check_without_images((*path, *below), inner)
