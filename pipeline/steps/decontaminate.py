"""`decontaminate`: drops what an evaluation set holds too, so that comparisons on it stay fair.

A sample goes when the exact cosine of its image's embedding with that of any evaluation image is greater than
1 - epsilon. Every sample is compared with every evaluation image; nothing is clustered.

Reads a model's image embeddings, and embeds the evaluation sets with it. Verdict reason: `contaminated`. Details:
`similarity` to the most similar evaluation image (the lowest uid among equals), and its `evaluation_shard`,
`evaluation_key` and `evaluation_uid`. A sample without an embedding stays.
"""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from operators.errors import InputError
from operators.uids import split_uids
from pipeline.artifact import Artifact, parquet_bytes, read_columns
from pipeline.columns import embeddings, present, scatter, uid_rows
from pipeline.paths import resolve_source
from pipeline.pool import Source
from pipeline.references import check_reference, embed_reference, reference_facts
from pipeline.run import Modality, Read, Run
from pipeline.spread import spread
from pipeline.steps.base import Step, reasons
from pipeline.steps.semantic_dedup import Epsilon
from pipeline.storage import Store
from pipeline.units import Verdicts

_BLOCK_ROWS = 16_384
"""Evaluation images compared at a time: 64 MB as float64 at 512 dimensions."""


class Decontaminate(Step):
    """Settings of the step.

    Attributes:
        model: whose image embeddings are compared.
        against: the evaluation sets, as sources of a pool. Give them a `name` to see which one it was.
        epsilon: samples go when 1 - cosine is less.
    """

    step: Literal["decontaminate"]
    model: str
    against: tuple[Source, ...] = Field(min_length=1)
    epsilon: Epsilon

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's images."""
        return ((self.model, "image"),)

    def resolved(self) -> Self:
        """The same with the sets' paths absolute."""
        return self.model_copy(update={"against": tuple(map(resolve_source, self.against))})

    def check(self) -> None:
        """Looks whether the evaluation sets are there."""
        check_reference(self.against)

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        sets = embed_reference(run, self.against, self.embeddings(), f"{self.title}.against")
        vectors = sets.embeddings[self.model, "image"]
        identity = self.identity(run) | {"against": [sets.samples.digest, vectors.digest]}
        reads = [Read(run.embeddings[self.model, "image"], {"embedding": "embedding"})]
        plan = run.plan(self.title, identity, reads)
        if published := plan.published:
            return published
        parts = [(ours.path, theirs.path) for ours, theirs in zip(sets.samples.parts, vectors.parts, strict=True)]
        (blocks,) = spread(partial(_gather, run.store, f"{plan.folder}/against"), [parts], workers=1)
        if not blocks:
            raise InputError(f"{self.title}.against must hold at least one sound image, got none")
        compare = partial(judge, run.store, blocks, 1.0 - self.epsilon, run.threads)
        return plan.map_verdicts(compare, info={"reference": reference_facts(sets)}, threads=run.threads)

    def identity(self, run: Run) -> dict[str, Any]:
        """The sets count by what they hold, not by where they lie."""
        identity = super().identity(run)
        del identity["against"]
        return identity


def judge(store: Store, blocks: Sequence[str], threshold: float, threads: int, table: pa.Table) -> Verdicts:
    """Drops the rows that are near an evaluation image."""
    from operators.certified import assign  # imports torch

    present_N = present(table["embedding"])
    x_MD = embeddings(table["embedding"])
    best_M, names_M = np.full(len(x_MD), -np.inf), np.full((len(x_MD), 3), None, dtype=object)
    for path in blocks:
        y_CD, names = _read_block(store, path)
        nearest_M, similarity_M = assign(x_MD, y_CD.astype(np.float64), threads=threads)
        better_B = np.flatnonzero(similarity_M > best_M)  # of equals the earlier, whose uid is lower
        best_M[better_B] = similarity_M[better_B]
        names_M[better_B] = names[nearest_M[better_B]]
    kept_N = np.ones(table.num_rows, dtype=bool)
    kept_N[present_N] = best_M <= threshold
    columns = {"similarity": pa.array(best_M)}
    columns |= {f"evaluation_{name}": pa.array(names_M[:, i], pa.string()) for i, name in enumerate(_NAMES)}
    details = pa.StructArray.from_arrays([scatter(column, present_N) for column in columns.values()], list(columns))
    return Verdicts(kept_N, reasons(kept_N, "contaminated"), details)


_NAMES = ("shard", "key", "uid")


def _gather(store: Store, folder: str, parts: Sequence[tuple[str, str]]) -> list[str]:
    """Writes the evaluation images that have an embedding, by uid, in blocks; gives their paths.

    Holds the whole of the evaluation sets' embeddings.
    """
    tables = []
    for samples, vectors in parts:
        table = read_columns(store, samples, ["uid", "shard", "key"])
        table = table.append_column("embedding", read_columns(store, vectors, ["embedding"])["embedding"])
        tables.append(table.filter(table["embedding"].is_valid()))
    table = pa.concat_tables(tables)
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    table = table.take(pa.array(np.lexsort((low_N, high_N))))
    paths = []
    for start in range(0, table.num_rows, _BLOCK_ROWS):
        paths.append(f"{folder}/{start // _BLOCK_ROWS:06d}.parquet")
        store.replace(paths[-1], parquet_bytes(table.slice(start, _BLOCK_ROWS)))
    return paths


@functools.lru_cache(maxsize=32)
def _read_block(store: Store, path: str) -> tuple[NDArray[np.float16], NDArray[Any]]:
    """Embeddings and names of a block of evaluation images; each worker reads it once."""
    table = read_columns(store, path)
    names = [table["shard"].to_pylist(), table["key"].to_pylist(), [uid.hex() for uid in table["uid"].to_pylist()]]
    return embeddings(table["embedding"]), np.array(names, dtype=object).T
