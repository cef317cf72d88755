"""The config of `winnow curate`, and what can be checked of it without reading the pool."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.encoders.settings import ModelSettings
from pipeline.config.problems import KeyProblem
from pipeline.engine import Resources
from pipeline.export.settings import Export
from pipeline.pool import Pool
from pipeline.steps.base import Step
from pipeline.steps.registry import AnyStep
from pipeline.storage import Store

_RESERVED = {"samples", "unique_uid", "ledger", "report", "pieces", "pool"}
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
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    steps: tuple[AnyStep, ...] = ()
    export: tuple[Export, ...] = ()
    report: bool = True
    resources: Resources = Resources()

    @property
    def store(self) -> Store:
        """The workspace. A local one is made absolute: workers of a cluster may run in other folders."""
        is_local = "://" not in self.workspace
        return Store(str(Path(self.workspace).absolute()) if is_local else self.workspace, self.storage)

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
