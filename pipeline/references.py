"""Reference sets: images beside the pool that a step compares the pool with, such as evaluation or target sets.

A reference set is read and embedded like a pool, into the same workspace, where it is found again by content.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.embed import make
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool, Source
from pipeline.run import Modality, Run


def check_reference(sources: Sequence[Source]) -> None:
    """Checks that a reference set is there and is what its settings say. Raises UserError."""
    shards = list_shards(Pool(sources=tuple(sources)))
    for index, source in enumerate(sources):
        check_source(source, [shard for shard in shards if shard.source == index])


def embed_reference(run: Run, sources: Sequence[Source], needs: Sequence[tuple[str, Modality]]) -> Run:
    """Reads and embeds a reference set, or finds that done.

    Args:
        run: the pool's, which is left as it is.
        sources: of the reference set. Rejected samples have no embedding, and stop nothing.
        needs: (model, modality) pairs of the run's models.

    Returns:
        a run over the reference set, with `samples` and `embeddings`, whose artifacts' digests name all that it holds.

    Raises:
        NotPublished: it is not embedded yet and the run is a dry one.
    """
    pool = run.pool.model_copy(update={"sources": tuple(sources)})
    reference = replace(run, pool=pool, shards=list_shards(pool), artifacts={}, embeddings={}, verdicts=[], clusters={})
    make(reference, needs)
    return reference
