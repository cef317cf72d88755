"""Small pools of embeddings on disk, for the tests of several packages."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def uid(number: int) -> str:
    """The supplied uid of a row."""
    return f"{number:032x}"


def unit_rows(count: int, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    """Unit rows in random directions."""
    x_ND = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def table(first: int, count: int, **columns: list) -> pa.Table:
    """Metadata of some rows: uid and caption, and what else is given."""
    rows = range(first, first + count)
    return pa.table({"uid": [uid(i) for i in rows], "caption": [f"text {i}" for i in rows], **columns})


def write_clip_retrieval(
    folder: Path, images: list[NDArray], texts: list[NDArray] | None = None, first: int = 0
) -> None:
    """A clip-retrieval folder, a file for each array."""
    for name in ("metadata", "img_emb", *(["text_emb"] if texts else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, x_ND in enumerate(images):
        pq.write_table(table(first, len(x_ND)), folder / f"metadata/metadata_{i}.parquet")
        np.save(folder / f"img_emb/img_emb_{i}.npy", x_ND)
        if texts:
            np.save(folder / f"text_emb/text_emb_{i}.npy", texts[i])
        first += len(x_ND)


def write_datacomp(folder: Path, name: str, rows: pa.Table, **arrays: NDArray) -> None:
    """One DataComp table, with an `.npz` beside it where there are arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / f"{name}.parquet")
    if arrays:
        np.savez(folder / f"{name}.npz", **arrays)
