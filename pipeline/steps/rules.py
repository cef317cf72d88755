"""`rules`: the basic filters on sizes, shape, words, characters and language.

Reads `width`, `height` and `caption` of `samples`. Verdict reasons: the name of the rule that failed first. Details:
`side`, `aspect`, `words`, `chars`, and `language` with `language_score` where a rule asked for it. A sample whose size
is not known (of a pool of embeddings) counts as 0 x 0: it passes no `min_side` and no `max_aspect`.
"""

from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa

from operators.rules import RuleSettings, apply_rules
from pipeline.artifact import Artifact
from pipeline.run import Read, Run
from pipeline.steps.base import Step
from pipeline.units import Verdicts


class Rules(Step, RuleSettings):
    """Settings of the step: those of `operators.rules.RuleSettings`."""

    step: Literal["rules"]

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        columns = {name: name for name in ("width", "height", "caption")}
        plan = run.plan(self.title, self.identity(run), [Read(run.samples, columns)])
        return plan.published or plan.map_verdicts(partial(judge, self))


def judge(settings: Rules, table: pa.Table) -> Verdicts:
    """Keeps the rows that pass every rule."""
    width_N, height_N = (table[name].fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height"))
    result = apply_rules(settings, width_N, height_N, table["caption"].to_pylist())
    columns = {
        "side": pa.array(result.smaller_sides_N),
        "aspect": pa.array(result.aspects_N, mask=np.isinf(result.aspects_N)),
        "words": pa.array(result.words_N),
        "chars": pa.array(result.chars_N),
        "language": pa.array(result.languages_N, pa.string()),
        "language_score": pa.array(result.language_scores_N, mask=np.isnan(result.language_scores_N)),
    }
    details = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return Verdicts(result.kept_N, pa.array(result.reasons_N, pa.string()), details)
