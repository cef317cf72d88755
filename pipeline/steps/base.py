"""What a step is: frozen settings, a version, what it reads, and a function of the run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from operators.errors import ConfigError
from pipeline.artifact import Artifact
from pipeline.config.problems import KeyProblem
from pipeline.config.yaml_values import KeyPath
from pipeline.run import Modality, Run

NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"
"""What a config may call things that become folders."""

Stands = Literal["always", "append", "never"]
"""Whether the verdicts of earlier nights stand (`pipeline.given`): always, by the policy `append` alone, or never."""


class Step(BaseModel):
    """The settings of one step and the work that they describe.

    A subclass names its kind in a `step: Literal[...]` field, counts up `version` whenever the same inputs would give
    another output, and overrides `run`.

    Attributes:
        name: how other steps, the ledger and the report call it; its kind unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: ClassVar[int] = 1
    random: ClassVar[bool] = False
    """Whether the run's seed changes the result."""
    looks_at_images: ClassVar[bool] = False
    """Whether it reads the images themselves, besides what is known of them."""
    stands: ClassVar[Stands] = "never"
    """Whether its earlier verdicts stand: for a step that compares samples and can leave those of earlier nights be."""

    step: str
    name: str = Field(default="", pattern=f"^({NAME})?$")

    @property
    def title(self) -> str:
        """The step's name."""
        return self.name or self.step

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The (model, modality) pairs that must be embedded before the step runs."""
        return ()

    def scores(self) -> Sequence[str]:
        """The names of the score steps that it reads."""
        return ()

    @property
    def gives_score(self) -> bool:
        """Whether the output is a score that later steps can name."""
        return False

    @property
    def judges(self) -> bool:
        """Whether the output is verdicts; otherwise every row passes."""
        return not self.gives_score

    @property
    def clusterings(self) -> Sequence[str]:
        """The names that its clusterings of the pool have in the run, which exports may ask for."""
        return ()

    @property
    def inner(self) -> Sequence[tuple[KeyPath, "Step"]]:
        """The steps that it runs as parts of itself, and where they stand in its settings."""
        return ()

    def resolved(self) -> Self:
        """The same settings with every path absolute."""
        return self

    def check(self) -> None:
        """Checks, before any work, what the settings name outside the config. Raises UserError."""

    def check_scores(self, scored_by: Callable[[str], str | None]) -> None:
        """Checks, before any work, the scores that it reads.

        Args:
            scored_by: gives what computes the score of a name: `Step.scored_by`.

        Raises:
            UserError: they are not what the step can use.
        """

    @property
    def again(self) -> "Step | None":
        """The step that a night ends with besides, where what this one goes by may change from night to night.

        Its own verdicts stand then (`pipeline.given`), so that no step after it is given other rows.
        """
        return None

    def content(self) -> Mapping[str, str]:
        """What the settings name and do not hold, as it is now: setting -> digest, where no run is needed to know."""
        return {}

    def check_nightly(self) -> None:
        """Checks, before any work, whether the step can be applied night by night (`pipeline.given`).

        What goes shard by shard can. A step that compares samples needs something that is given, or verdicts that
        stand; one that has neither refuses here.

        Raises:
            UserError: it cannot, and why.
        """

    def scored_by(self, models: Mapping[str, Any]) -> str | None:
        """What computes the score that it gives, by the settings of the models: equal where scores can be compared.

        None where that is known only once the step has run; the info of its artifact then says it.
        """
        raise NotImplementedError

    def run(self, run: Run) -> Artifact:
        """Finds or makes the step's artifact."""
        raise NotImplementedError

    def identity(self, run: Run) -> dict[str, Any]:
        """What addresses the step's output, besides what it reads."""
        settings = self.model_dump(mode="json", exclude={"name"})
        seed = {"seed": run.seed} if self.random else {}
        return {"kind": self.step, "version": self.version, **settings, **seed}


def refuse_nightly(step: Step, what: str, why: str) -> None:
    """Raises ConfigError: the step cannot be applied night by night.

    Args:
        step: whose.
        what: of it is refused.
        why: that is so.
    """
    raise ConfigError(f"{step.title} must be a step that can be applied night by night, got {what}: {why}")


def refuse_ignored(settings: BaseModel, names: Iterable[str], why: str) -> None:
    """Raises KeyProblem where a setting that nothing would look at is not its default; for validators.

    A default is let through even where it is written out, as in the record of a run.
    """
    for name in names:
        got = getattr(settings, name)
        if got != type(settings).model_fields[name].default:
            raise KeyProblem((name,), f"must be left out {why}, got {got}")


def reasons(kept_N: Any, reason: str) -> pa.Array:
    """The reasons array of a step that has only one: null where kept."""
    return pa.array([reason] * len(kept_N), type=pa.string(), mask=kept_N)
