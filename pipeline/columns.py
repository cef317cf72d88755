"""Arrow columns that stand for numpy arrays: embeddings and 16-byte identifiers.

An embedding column is `fixed_size_binary(2 D)` holding D little-endian float16 a row, with its width and dtype in the
field's metadata: it reads seven times faster than a list of half floats and takes no space where it is null.

Legend: N rows, D dimensions.
"""

from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.uids import UID_BYTES

UID_TYPE = pa.binary(UID_BYTES)


def embedding_field(name: str, dim: int) -> pa.Field:
    """The field of an embedding column of `dim` float16 values a row."""
    return pa.field(name, pa.binary(2 * dim), metadata={"dtype": "float16", "dim": str(dim)})


def fixed_binary(rows_NB: NDArray[Any], present_N: NDArray[np.bool_] | None = None) -> pa.Array:
    """A `fixed_size_binary` array from the bytes of each row of a contiguous array; null where not present."""
    rows_NB = np.ascontiguousarray(rows_NB)
    width = rows_NB.strides[0] if len(rows_NB) else int(np.prod(rows_NB.shape[1:])) * rows_NB.itemsize
    validity = None
    if present_N is not None and not present_N.all():
        validity = pa.py_buffer(np.packbits(present_N, bitorder="little"))
    return pa.Array.from_buffers(pa.binary(width), len(rows_NB), [validity, pa.py_buffer(rows_NB)])


def fixed_rows(column: pa.ChunkedArray | pa.Array, dtype: str) -> NDArray[Any]:
    """The inverse of `fixed_binary` without nulls: one row of `dtype` values for each non-null row, without a copy.

    Args:
        column: of type `fixed_size_binary`.
        dtype: such as `<f2` or `V16`.
    """
    array = _single(column.drop_null())
    width = array.type.byte_width
    data = array.buffers()[1]
    if data is None:
        data = pa.py_buffer(b"")
    raw = np.frombuffer(data, dtype=np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    return cast(NDArray[Any], raw.view(dtype).reshape(len(array), width // np.dtype(dtype).itemsize))


def embeddings(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float16]:
    """The present rows of an embedding column, (N, D) float16."""
    return cast("NDArray[np.float16]", fixed_rows(column, "<f2"))


def uid_rows(column: pa.ChunkedArray | pa.Array) -> NDArray[np.void]:
    """A uid column without nulls as N rows of dtype `V16`."""
    return cast("NDArray[np.void]", fixed_rows(column, f"V{UID_BYTES}")[:, 0])


def present(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    """Which rows are not null."""
    return cast("NDArray[np.bool_]", column.is_valid().to_numpy(zero_copy_only=False))


def booleans(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    """A nullable bool column with null as False."""
    return cast("NDArray[np.bool_]", column.fill_null(False).to_numpy(zero_copy_only=False))


def scatter(values: pa.Array, entered_N: NDArray[np.bool_]) -> pa.Array:
    """Spreads values of the rows that entered over all rows; null elsewhere.

    Args:
        values: one for each True of `entered_N`, in order.
        entered_N: which rows entered.
    """
    positions = np.cumsum(entered_N) - 1
    return values.take(pa.array(positions, mask=~entered_N))


def _single(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
