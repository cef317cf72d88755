import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import (
    booleans,
    embedding_field,
    embeddings,
    fixed_binary,
    fixed_rows,
    present,
    scatter,
    uid_rows,
)

MASKS = st.lists(st.booleans(), max_size=20).map(lambda bits: np.array(bits, dtype=bool))


def rows(count: int, dim: int = 3) -> np.ndarray:
    return np.arange(count * dim, dtype=np.float16).reshape(count, dim)


@given(MASKS)
def test_embeddings_come_back_where_they_are_present(present_N):
    x_ND = rows(len(present_N))
    column = fixed_binary(x_ND, present_N)
    assert column.type == embedding_field("x", 3).type
    assert present(column).tolist() == present_N.tolist()
    assert embeddings(column).tolist() == x_ND[present_N].tolist()
    assert embeddings(column).shape == (present_N.sum(), 3)


def test_a_slice_a_chunked_column_and_a_file_read_alike(tmp_path):
    x_ND = rows(6)
    present_N = np.array([True, False, True, True, False, True])
    column = fixed_binary(x_ND, present_N)
    assert embeddings(column.slice(2, 3)).tolist() == x_ND[[2, 3]].tolist()
    chunked = pa.chunked_array([column.slice(0, 3), column.slice(3)])
    assert embeddings(chunked).tolist() == x_ND[present_N].tolist()
    table = pa.table([column], schema=pa.schema([embedding_field("x", 3)]))
    pq.write_table(table, tmp_path / "a.parquet")
    read = pq.read_table(tmp_path / "a.parquet")
    assert embeddings(read["x"]).tolist() == x_ND[present_N].tolist()
    assert read.schema.field("x").metadata == {b"dtype": b"float16", b"dim": b"3"}


TYPE = pa.binary(6)


@pytest.mark.parametrize("column", [pa.array([], TYPE), pa.chunked_array([], TYPE), pa.nulls(2, TYPE)])
def test_none(column):
    assert embeddings(column).shape == (0, 3)


def test_uids():
    column = pa.array([bytes(range(16)), b"\xff" * 16], pa.binary(16))
    assert [row.tobytes() for row in uid_rows(column)] == column.to_pylist()
    assert fixed_rows(column, ">u8").tolist()[1] == [2**64 - 1] * 2


def test_null_is_false():
    assert booleans(pa.array([True, None, False])).tolist() == [True, False, False]


@given(MASKS)
def test_scatter_puts_values_where_rows_entered(entered_N):
    values = pa.array(range(entered_N.sum()), pa.int64())
    spread = scatter(values, entered_N).to_pylist()
    assert [value for value in spread if value is not None] == values.to_pylist()
    assert [value is not None for value in spread] == entered_N.tolist()
