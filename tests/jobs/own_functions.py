"""What a user of the `python` step might write, well and badly."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def keeps_long_captions_or_none(table: pa.Table) -> pa.ChunkedArray:
    """A verdict: captions of more than 12 characters, and samples without one."""
    return pc.fill_null(pc.greater(pc.utf8_length(table["caption"]), 12), True)


def caption_length(table: pa.Table) -> list[float]:
    """A score; NaN where there is nothing to say."""
    return [float(len(caption)) if caption else np.nan for caption in table["caption"].to_pylist()]


def keeps_high_scores(table: pa.Table) -> np.ndarray:
    """A verdict that reads the score of an earlier step."""
    return table["length"].to_numpy() >= 15


def raises(table: pa.Table) -> list[bool]:
    return [row == 1 // 0 for row in range(table.num_rows)]


def gives_one_value(table: pa.Table) -> list[bool]:
    return [True]


def gives_nothing(table: pa.Table) -> None:
    return None


def gives_numbers(table: pa.Table) -> list[int]:
    return [1] * table.num_rows


number = 3
