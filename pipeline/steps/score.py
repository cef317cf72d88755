"""`score`: the cosine of a sample's image and caption under one CLIP model. Every row passes.

Reads both embeddings of the model. Output column: `score`, float64 in [-1, 1], null where there is no caption.
Data Filtering Networks use it with a network trained on trusted pairs (Fang et al. 2023, arXiv 2309.17425, section 3).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from operators.embeddings import cosine_pairs
from pipeline.artifact import Artifact
from pipeline.columns import embeddings, present, scatter
from pipeline.models import decide_precision, model_identity
from pipeline.run import Modality, Read, Run
from pipeline.steps.base import Step


class Score(Step):
    """Settings of the step.

    Attributes:
        model: a model of the config with an image and a text tower.
    """

    step: Literal["score"]
    model: str

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """Both towers of the model."""
        return (self.model, "image"), (self.model, "text")

    @property
    def gives_score(self) -> bool:
        """Always."""
        return True

    def scored_by(self, models: Mapping[str, Any]) -> str:
        """The identity of the model."""
        return model_identity(decide_precision(models[self.model]))

    def run(self, run: Run) -> Artifact:
        """Finds or makes the scores."""
        image, text = (run.embeddings[need] for need in self.embeddings())
        reads = [Read(image, {"embedding": "image"}), Read(text, {"embedding": "text"})]
        plan = run.plan(self.title, self.identity(run), reads)
        info = {"scored_by": self.scored_by(run.models)}
        return plan.published or plan.map_attributes(cosine, info=info)


def cosine(table: pa.Table) -> pa.Table:
    """The score of every row that has both embeddings."""
    both_N = present(table["image"]) & present(table["text"])
    pairs = table.filter(pa.array(both_N))
    values = cosine_pairs(embeddings(pairs["image"]), embeddings(pairs["text"]))
    return pa.table({"score": scatter(pa.array(values, pa.float64()), np.asarray(both_N))})
