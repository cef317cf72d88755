"""Every kind of step that a config may name. A new kind is a module beside this one and a line here."""

from typing import Annotated

from pydantic import Field

from pipeline.steps.deny import Deny
from pipeline.steps.exact_dedup import ExactDedup
from pipeline.steps.filter import Filter
from pipeline.steps.prune import Prune
from pipeline.steps.python import Python
from pipeline.steps.rules import Rules
from pipeline.steps.score import Score

AnyStep = Annotated[
    Rules | Deny | ExactDedup | Score | Filter | Python | Prune,
    Field(discriminator="step"),
]
