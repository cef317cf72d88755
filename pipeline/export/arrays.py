"""Writing the embeddings of kept rows as `.npy`, one shard in memory at a time.

A kept row without an embedding is a row of zeros, so that rows stay aligned with those of other files; read again as a
pool, a zero row of an image is `bad_embedding`, one of a caption means that there is none.

Legend: N rows, D columns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError
from pipeline.artifact import Artifact, read_schema
from pipeline.columns import embeddings, present
from pipeline.export.slices import Group, num_rows, read_kept
from pipeline.run import Modality, Run
from pipeline.storage import Store


def find_embeddings(run: Run, model: str, modality: Modality) -> Artifact:
    """The embeddings that an export names. Raises ConfigError where the run has not made them."""
    artifact = run.embeddings.get((model, modality))
    if artifact is None:
        known = ", ".join(sorted({name for name, made in run.embeddings if made == modality})) or "none"
        raise ConfigError(f"export model must be one whose {modality}s the run has embedded ({known}), got {model!r}")
    return artifact


def width_of(store: Store, artifact: Artifact) -> int:
    """D of an embedding artifact: that of its first part, since all are the same."""
    return int(read_schema(store, artifact.parts[0].path).field("embedding").type.byte_width) // 2


def write_embeddings(store: Store, group: Group, parts: Sequence[str], width: int, path: Path) -> None:
    """Writes one array, float16 (N, D), a row for each row of a group.

    Args:
        store: the workspace.
        group: which rows.
        parts: for each slice, its shard's part of the embeddings.
        width: D.
        path: of the file.
    """
    with path.open("wb") as file:
        write_header(file, np.dtype("<f2"), (num_rows(group), width))
        for piece, part in zip(group, parts, strict=True):
            column = read_kept(store, piece, [], {"embedding": (part, "embedding")})["embedding"]
            present_N = present(column)
            unit_ND: NDArray[np.float16] = np.zeros((len(present_N), width), dtype="<f2")
            unit_ND[present_N] = embeddings(column)
            file.write(unit_ND.tobytes())


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:  # type: ignore[type-arg]
    """Begins a `.npy`, so that rows can follow as they come."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
