"""Evaluation sets: read and embedded like a reference set, by every model of the job in as few passes as memory allows.

Legend: N rows of the set, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import InputError
from pipeline.artifact import read_columns
from pipeline.columns import embeddings, present
from pipeline.embed import make
from pipeline.labels.fields import read_fields
from pipeline.labels.numbers import Place
from pipeline.pool import Pool
from pipeline.references import embed_reference
from pipeline.run import Run
from pipeline.storage import Store

MODELS_PER_PASS = 4
"""Each encoder process of a pass holds all of its models at once."""


@dataclass(frozen=True)
class EvaluationSet:
    """The sound samples of a set, in its order, embedded.

    Attributes:
        run: over the set.
        samples: a row for each sound sample: uid, shard, key, caption, image_hash.
        sound_N: which of all rows those are.
        rejected: reason -> how many of the others.
        damaged: shard -> why it could not be read to its end.
    """

    run: Run
    samples: pa.Table
    sound_N: NDArray[np.bool_]
    rejected: Mapping[str, int]
    damaged: Mapping[str, str]

    def places(self, field: str) -> list[Place]:
        """Where the samples lie, for messages about a setting and the field that it names."""
        pairs = zip(self.samples["shard"].to_pylist(), self.samples["key"].to_pylist(), strict=True)
        return [Place(shard, key, field) for shard, key in pairs]

    @property
    def digest(self) -> str:
        """Names all that the set holds."""
        return self.run.samples.digest

    @property
    def facts(self) -> dict[str, Any]:
        """How many samples are sound, and what became of the others, JSON-able."""
        return {"samples": len(self.samples), "rejected": dict(self.rejected), "damaged": dict(self.damaged)}

    def vectors(self, model: str) -> tuple[str, ...]:
        """The parts of a model's embeddings: see `read_vectors`."""
        return tuple(part.path for part in self.run.embeddings[model, "image"].parts)

    def fields(self, names: Sequence[str]) -> tuple[pa.Table, str]:
        """Those fields of the sound samples, and a digest: see `pipeline.labels.fields.read_fields`."""
        table, digest = read_fields(self.run, names)
        return table.filter(pa.array(self.sound_N)), digest


def open_set(run: Run, pool: Pool, models: Sequence[str], key: str, *, needs_text: bool = False) -> EvaluationSet:
    """Reads a set and embeds its images, or finds that done.

    Args:
        run: of the job: store, models, workers.
        pool: the set and its limits.
        models: whose image towers are asked.
        key: of the setting, for messages: `tasks.cifar10.data`.
        needs_text: whether captions are of use; else none is asked for, unless the config does so.

    Raises:
        LimitExceeded: too much of it is rejected or damaged.
        InputError: it has no sample, or none that is sound.
    """
    sources = (pool if needs_text else pool.without_text).sources
    passes = [models[start : start + MODELS_PER_PASS] for start in range(0, len(models), MODELS_PER_PASS)]
    first, *later = [[(model, "image") for model in some] for some in passes]
    reference = embed_reference(replace(run, pool=pool), sources, first, key)  # type: ignore[arg-type]
    for needs in later:
        make(reference, needs)  # type: ignore[arg-type]
    parts = reference.samples.parts
    wanted = ["uid", "shard", "key", "caption", "image_hash", "reason"]
    table = pa.concat_tables([read_columns(run.store, part.path, wanted) for part in parts])
    sound = table["reason"].is_null()
    rejected = reference.samples.totals("rejected")
    if table.num_rows == sum(rejected.values()):
        raise InputError(f"{key} must hold at least one sound sample, got only rejects: {rejected}")
    return EvaluationSet(
        run=reference,
        samples=table.filter(sound).drop_columns(["reason"]),
        sound_N=sound.to_numpy(),
        rejected=rejected,
        damaged={part.shard: part.notes["damage"] for part in parts if part.notes.get("damage")},
    )


def read_vectors(
    store: Store, paths: Sequence[str], sound_N: NDArray[np.bool_]
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """The stored rows of the sound samples, and which of them the model could embed; the others are all zeros."""
    column = pa.concat_tables([read_columns(store, path, ["embedding"]) for path in paths])["embedding"]
    x_ND = np.zeros((len(column), column.type.byte_width // 2), np.float16)
    x_ND[present(column)] = embeddings(column)
    return x_ND[sound_N], present(column)[sound_N]
