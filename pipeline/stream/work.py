"""What one pass over the shards is asked to produce, in words that every task of it can read.

Output columns of the `samples` artifact, one row for each sample, rejects included:

    uid           16 bytes             shard, key, row       where the sample comes from
    offset, bytes where its image lies  ext, width, height    null where the image could not be read, or there is none
    caption       null where there is none                    image_hash  BLAKE2b-128 of the encoded image
    reason        a `Reason`, null where the sample is sound   metadata    the user's own fields as JSON, or null

Output column of an embedding artifact: `embedding`, null for rows that were not embedded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.columns import UID_TYPE
from pipeline.pool import Pool, Shard
from pipeline.run import Modality
from pipeline.storage import Store

SAMPLES_VERSION = 1
EMBEDDING_VERSION = 1

SAMPLES_SCHEMA = pa.schema(
    [
        ("uid", UID_TYPE),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("row", pa.int64()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("ext", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption", pa.string()),
        ("image_hash", pa.binary(16)),
        ("reason", pa.string()),
        ("metadata", pa.string()),
    ]
)


@dataclass(frozen=True)
class Need:
    """One embedding artifact that a pass fills: a model's view of the images or of the captions.

    Attributes:
        model: its name in the config.
        modality: what of a sample it looks at.
        folder: of the artifact.
        dim: columns of a stored embedding; None where an encoder tells.
    """

    model: str
    modality: Modality
    folder: str
    dim: int | None = None

    @property
    def name(self) -> str:
        """The column's name inside the pass, and the step's name in tables."""
        return f"{self.model}.{self.modality}"


@dataclass(frozen=True)
class ShardWork:
    """What one shard still lacks.

    Attributes:
        shard: the shard.
        samples_id: the address of its part in the `samples` artifact.
        samples_path: that part, when it exists already; None asks this pass to make it.
        rows: of that part; None when it is to be made.
        entering: the verdict part whose kept rows are to be embedded; None embeds every sound row.
        needs: (need, part id) of the embeddings to make.
    """

    shard: Shard
    samples_id: str
    samples_path: str | None
    rows: int | None
    entering: str | None
    needs: tuple[tuple[Need, str], ...]


@dataclass(frozen=True)
class Pass:
    """What all tasks of one pass share.

    Attributes:
        store: the workspace.
        pool: the pool's settings.
        samples_folder: of the `samples` artifact.
        models: settings of the models needed, by name.
        pieces: the folder, relative to the workspace, for the pieces of this attempt.
    """

    store: Store
    pool: Pool
    samples_folder: str
    models: Mapping[str, Any]
    pieces: str

    def piece(self, work: ShardWork, chunk: int) -> str:
        """Where the piece of a chunk waits for its shard to be finalised."""
        return f"{self.pieces}/{work.samples_id}/{chunk:06d}.arrow"
