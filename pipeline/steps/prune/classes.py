"""Classes of samples by a field of the metadata, and the exact sum of each class's embeddings.

Legend: N rows of a table, C classes, D dimensions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.errors import InputError
from pipeline.columns import embeddings
from pipeline.fold import fold
from pipeline.run import Plan

MAX_CLASSES = 1 << 16
"""The driver holds a sum of embeddings for each: 256 MB at D = 512."""


@dataclass(frozen=True)
class Classes:
    """What is known of each class, by name.

    Attributes:
        names: sorted, each once.
        sums_CD: float64, the exact sum of its samples' embeddings.
        counts_C: int64, its samples that have an embedding.
    """

    names: tuple[str, ...]
    sums_CD: NDArray[np.float64]
    counts_C: NDArray[np.int64]


def find_classes(plan: Plan, title: str, field: str) -> Classes:
    """The classes of the rows that a plan reads.

    Args:
        plan: reads columns `metadata` and `embedding`.
        title: of the step, for messages.
        field: of the metadata.

    Raises:
        InputError: no row has the field, or it has more values than classes can have.
    """
    classes: Classes = fold(plan, partial(sum_classes, field), partial(merge_classes, title, field))
    _check_some(title, field, classes.names)
    return classes


def find_names(plan: Plan, title: str, field: str) -> tuple[str, ...]:
    """The names of `find_classes` alone, for whom the sums would be a waste. Raises as that does."""
    names: tuple[str, ...] = fold(plan, partial(list_names, field), partial(merge_names, title, field))
    _check_some(title, field, names)
    return names


def sum_classes(field: str, table: pa.Table) -> Classes:
    """The classes of one table, of its rows that have a label and an embedding."""
    from operators.kmeans import partial_sums  # imports torch

    usable = _usable(field, table)
    names = _names(usable)
    class_N = class_ids(usable["label"].combine_chunks(), names)
    return Classes(names, *partial_sums(embeddings(usable["embedding"]), class_N, len(names)))


def merge_classes(title: str, field: str, a: Classes, b: Classes) -> Classes:
    """The classes of both. Sums are exact, so their order is free."""
    names = merge_names(title, field, a.names, b.names)
    sums_CD, counts_C = np.zeros((len(names), a.sums_CD.shape[1])), np.zeros(len(names), np.int64)
    for part in (a, b):
        at = class_ids(pa.array(part.names, pa.string()), names)
        sums_CD[at] += part.sums_CD
        counts_C[at] += part.counts_C
    return Classes(names, sums_CD, counts_C)


def list_names(field: str, table: pa.Table) -> tuple[str, ...]:
    """The names of the classes of one table, of its rows that have a label and an embedding; sorted."""
    return _names(_usable(field, table))


def merge_names(title: str, field: str, a: Sequence[str], b: Sequence[str]) -> tuple[str, ...]:
    """The names of both, sorted."""
    names = tuple(sorted({*a, *b}))
    if len(names) > MAX_CLASSES:
        raise InputError(
            f"{title}.label must be a field of at most {MAX_CLASSES:,} values, got {field!r}, which has {len(names):,}"
        )
    return names


def labels(field: str, metadata: pa.ChunkedArray) -> pa.Array:
    """The class of each row as text; null where the metadata has no such field, or no text and no whole number in it.

    A whole number is the class of its decimal text, so a table's `3` and a folder called `3` are one class.
    """
    values = (None if text is None else json.loads(text).get(field) for text in metadata.to_pylist())
    return pa.array(map(_label, values), pa.string())


def class_ids(names_N: pa.Array, names: Sequence[str]) -> NDArray[np.int32]:
    """The position of each name among the known ones, -1 where it is null or not among them."""
    position_N = pc.index_in(names_N, pa.array(names, pa.string()))
    return cast("NDArray[np.int32]", pc.fill_null(position_N, -1).to_numpy(zero_copy_only=False))


def _usable(field: str, table: pa.Table) -> pa.Table:
    """Columns `embedding` and `label` of the rows that have both."""
    return table.select(["embedding"]).append_column("label", labels(field, table["metadata"])).drop_null()


def _names(usable: pa.Table) -> tuple[str, ...]:
    return tuple(sorted(usable["label"].unique().to_pylist()))


def _check_some(title: str, field: str, names: Sequence[str]) -> None:
    if not names:
        raise InputError(f"{title}.label must be a field with text or whole numbers, got {field!r}, which no row has")


def _label(value: object) -> str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case str() | int():
            return str(value)
    return None
