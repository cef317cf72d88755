"""`intersection`: keeps what every one of several selections keeps.

Each of them judges all rows that enter, on its own: a share or a rank is one of this population, whereas in a chain of
steps it is one of what the step before left. DataComp's best baseline is one (Gadre et al. 2023, arXiv 2304.14108,
section 4.1): the best 30 % by CLIP score, intersected with `image_based`.

Reads the verdicts of the steps in `of`, whose artifacts are called `<name>.<name of the inner step>`. Verdict reasons:
`not_in_<name of the inner step>`, the first that drops the row. Details: for each inner step its reason under its name,
null where it keeps the row, and its own details as `<its name>.<detail>`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.artifact import Artifact, read_schema
from pipeline.columns import booleans
from pipeline.config.problems import KeyProblem
from pipeline.config.yaml_values import KeyPath
from pipeline.run import Modality, Read, Run
from pipeline.steps.base import Step, refuse_nightly
from pipeline.units import Verdicts

if TYPE_CHECKING:
    from pipeline.steps.registry import AnyStep  # which names this class in turn, and completes it


class Intersection(Step):
    """Settings of the step.

    Attributes:
        of: the steps, each with the settings that it would have by itself. Names must differ among them.
    """

    step: Literal["intersection"]
    of: tuple["AnyStep", ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        titles = [step.title for step in self.of]
        for i, step in enumerate(self.of):
            if not step.judges:
                raise KeyProblem(("of", i), f"must be a step that drops samples, got {step.step}")
            if step.title in titles[:i]:
                raise KeyProblem(("of", i, "name"), f"must be unique in the intersection, got {step.title!r} again")
        return self

    @property
    def inner(self) -> Sequence[tuple[KeyPath, Step]]:
        """The steps in `of`."""
        return [(("of", i), step) for i, step in enumerate(self.of)]

    @property
    def clusterings(self) -> Sequence[str]:
        """Those of the inner steps, which go by `<name>.<name of the inner step>`."""
        return [f"{self.title}.{name}" for step in self.of for name in step.clusterings]

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """All that an inner step needs."""
        return list(dict.fromkeys(need for step in self.of for need in step.embeddings()))

    def scores(self) -> Sequence[str]:
        """All that an inner step reads."""
        return list(dict.fromkeys(score for step in self.of for score in step.scores()))

    def resolved(self) -> Self:
        """The same with the inner steps' paths absolute."""
        return self.model_copy(update={"of": tuple(step.resolved() for step in self.of)})

    def check(self) -> None:
        """Checks each inner step. Raises UserError."""
        for step in self.of:
            step.check()

    def check_scores(self, scored_by: Callable[[str], str | None]) -> None:
        """Checks what each inner step reads. Raises UserError."""
        for step in self.of:
            step.check_scores(scored_by)

    def check_nightly(self) -> None:
        """Refused: what the inner steps found would have to be kept for each of them."""
        refuse_nightly(self, "an intersection", "what its inner steps are given is not kept; write them one by one")

    def identity(self, run: Run) -> dict[str, Any]:
        """The names, which the reasons hold; the settings of the inner steps address what is read."""
        return {"kind": self.step, "version": self.version, "of": [step.title for step in self.of]}

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts of the inner steps, then of all together."""
        found = {
            step.title: step.model_copy(update={"name": f"{self.title}.{step.title}"}).run(run) for step in self.of
        }
        reads = [
            Read(artifact, {column: f"{name}/{column}" for column in _columns(run, artifact)})
            for name, artifact in found.items()
        ]
        plan = run.plan(self.title, self.identity(run), reads)
        alone = {name: artifact.total("kept") for name, artifact in found.items()}
        return plan.published or plan.map_verdicts(partial(judge, tuple(found)), info={"alone": alone})


def judge(names: Sequence[str], table: pa.Table) -> Verdicts:
    """Keeps the rows that each selection keeps.

    Args:
        names: of the selections.
        table: for each of them `<name>/kept`, `<name>/reason`, and `<name>/detail` where it gives details.
    """
    dropped_SN = np.array([~booleans(table[f"{name}/kept"]) for name in names])
    kept_N = np.logical_not(dropped_SN.any(axis=0))
    why = np.array([f"not_in_{name}" for name in names], dtype=object)[dropped_SN.argmax(axis=0)]
    columns: dict[str, pa.Array] = {}
    for name in names:
        columns[name] = table[f"{name}/reason"].combine_chunks()
        if f"{name}/detail" in table.column_names:
            detail = table[f"{name}/detail"].combine_chunks()
            columns |= {f"{name}.{field.name}": detail.field(i) for i, field in enumerate(detail.type)}
    details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return Verdicts(kept_N, pa.array(why, pa.string(), mask=kept_N), details)


def _columns(run: Run, artifact: Artifact) -> list[str]:
    """The columns of verdicts: not every step gives details."""
    return list(read_schema(run.store, artifact.parts[0].path).names)
