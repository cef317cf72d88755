"""The config of `winnow evaluate`, and what can be checked of it without reading an evaluation set."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.encoders.settings import ModelSettings
from pipeline.config.problems import KeyProblem
from pipeline.engine import Resources
from pipeline.evaluation.task_settings import Task
from pipeline.models import mismatch
from pipeline.paths import hand_down, resolve_model
from pipeline.pool import names_password
from pipeline.steps.base import NAME
from pipeline.storage import Store, absolute


class Evaluation(BaseModel):
    """One job: models, and the tasks that each of them is put to.

    Attributes:
        workspace: the folder that holds embeddings, outcomes and results.
        storage: options for fsspec to open the workspace.
        models: by name.
        tasks: in order.
        bootstrap: draws for the 95 % interval of each main metric; 0 leaves intervals out.
        seed: of the draws, and of what a linear probe holds out.
        resources: what the run may use. Changes no result, but that `gpus` decides a precision of `auto`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    workspace: str = Field(min_length=1)
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)
    models: dict[Annotated[str, Field(pattern=f"^{NAME}$")], ModelSettings] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    bootstrap: int = Field(default=1000, ge=0)
    seed: int = Field(default=0, ge=0)
    resources: Resources = Resources()

    @property
    def store(self) -> Store:
        """The workspace."""
        return Store(absolute(self.workspace), self.storage)

    def resolved(self) -> Self:
        """The same job with every path absolute, for workers that run in other folders."""
        resolved = {
            "workspace": self.store.url,
            "models": {name: resolve_model(model) for name, model in self.models.items()},
            "tasks": tuple(task.resolved() for task in self.tasks),
        }
        return self.model_copy(update=resolved)

    @model_validator(mode="after")
    def _hand_down(self) -> Self:
        return hand_down(self)

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if names_password(self.workspace):
            raise KeyProblem(("workspace",), "must not hold a password: give it under storage or in the environment")
        names: set[str] = set()
        for i, task in enumerate(self.tasks):
            name = getattr(task, "name", None)
            if name in names:
                raise KeyProblem(("tasks", i, "name"), f"must be unique, got {name!r} twice")
            names |= {name} if name else set()
            for key, pool in task.pools.items():
                for model in self.models.values():
                    if rule := mismatch(pool, model):
                        raise KeyProblem(("tasks", i, key, "format"), f"must be one of images: a model {rule}")
        return self

    @model_validator(mode="after")
    def _check_towers(self) -> Self:
        for name, model in self.models.items():
            if model.library == "stored":
                raise KeyProblem(("models", name, "library"), "must be one that embeds images, got stored")
            reading = next((task for task in self.tasks if task.reads_text), None)
            if reading and "text" not in model.modalities:
                rule = f"must be one with a text tower for {reading.task}, got {model.library}"
                raise KeyProblem(("models", name, "library"), rule)
        return self
