"""Reference sets: images beside the pool that a step compares the pool with, such as evaluation or target sets.

A reference set is read and embedded like a pool, into the same workspace, where it is found again by content.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from operators.errors import LimitExceeded
from pipeline.embed import make
from pipeline.limits import check_limits
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool, Shard, Source
from pipeline.run import Modality, Run


def check_reference(sources: Sequence[Source]) -> list[Shard]:
    """Checks that a reference set is there and is what its settings say; returns its shards. Raises UserError."""
    shards = list_shards(Pool(sources=tuple(sources)))
    for index, source in enumerate(sources):
        check_source(source, [shard for shard in shards if shard.source == index])
    return shards


def embed_reference(run: Run, sources: Sequence[Source], needs: Sequence[tuple[str, Modality]], key: str) -> Run:
    """Reads and embeds a reference set, or finds that done.

    Args:
        run: the pool's, which is left as it is.
        sources: of the reference set. The limits of the run's pool hold for it, too.
        needs: (model, modality) pairs of the run's models.
        key: of the setting that names the set, for messages: `decontaminate.against`.

    Returns:
        a run over the reference set, with `samples` and `embeddings`, whose artifacts' digests name all that it holds.

    Raises:
        NotPublished: it is not embedded yet and the run is a dry one.
        LimitExceeded: too many of its samples are rejected, or of its shards damaged.
        InputError: it has no sample at all.
    """
    pool = run.pool.model_copy(update={"sources": tuple(sources)})
    empty: dict[str, Any] = {"artifacts": {}, "embeddings": {}, "verdicts": [], "clusters": {}, "standing": None}
    reference = replace(run, pool=pool, shards=list_shards(pool), **empty)
    make(reference, needs)
    try:
        check_limits(pool, reference.samples, reference.samples, key)
    except LimitExceeded as error:
        raise LimitExceeded(f"{key}: {error}") from error
    return reference


def reference_facts(reference: Run) -> dict[str, Any]:
    """What there is to compare with, for the info of the artifact that it decided about.

    Args:
        reference: of `embed_reference`, with the embeddings of one model.

    Returns:
        `samples` of the set; of them `compared`, those that have an embedding; `rejected`, reason -> count; and
        `damaged`, shard -> reason.
    """
    (vectors,) = reference.embeddings.values()
    return {
        "samples": reference.samples.rows,
        "compared": vectors.total("kept"),
        "rejected": reference.samples.totals("rejected"),
        "damaged": {part.shard: part.notes["damage"] for part in reference.samples.parts if part.notes.get("damage")},
    }
