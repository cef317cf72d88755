import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.shuffle import PARTITION, num_partitions, shuffle
from pipeline.spread import spread

WORDS = {"a": [3, 1, 3], "b": [], "c": [1, 3, 7, 8, 8], "d": [4]}


@pytest.mark.parametrize(("rows", "expected"), [(0, 1), (1, 1), (2_000_000, 1), (2_000_001, 2), (9_000_000, 5)])
def test_partitions_fit_a_task(rows, expected):
    assert num_partitions(rows) == expected


@pytest.mark.ray
@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_rows_of_a_partition_meet_in_one_block(ray_here, partitions, workers):
    found = count_numbers(list(WORDS), partitions, workers)
    expected = Counter(number for numbers in WORDS.values() for number in numbers)
    assert sorted(found) == sorted(expected.items())


@pytest.mark.ray
def test_all_cpus_produce_at_once(ray_here, tmp_path):
    """None is kept for what comes after: each item waits here until all four have begun."""

    def produce(number: int) -> pa.Table:
        (tmp_path / str(number)).touch()
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 4:
            assert time.monotonic() < deadline, "the others have not begun"
            time.sleep(0.05)
        return pa.table({PARTITION: pa.array([number % 2], pa.int32())})

    tables = shuffle(range(4), produce, lambda block: block, partitions=2, workers=4)
    assert sum(table.num_rows for table in tables) == 4


@pytest.mark.ray
def test_no_rows_at_all(ray_here):
    assert count_numbers(["b"], 1, 2) == []


@pytest.mark.ray
def test_a_function_may_hold_more_than_ray_exports_with_one(ray_here):
    held_N = np.arange(13_000_000)  # 104 MB; Ray refuses functions of more than 100 MB

    def look(i: int) -> int:
        return int(held_N[i])

    assert sorted(spread(look, [0, 12_999_999], workers=2)) == [0, 12_999_999]


def count_numbers(names: list[str], partitions: int, workers: int) -> list[tuple[int, int]]:
    """Each number and how often it occurs in one block; twice in the list if its rows did not meet."""

    # Inner functions travel to the workers whole; this module cannot be imported there.
    def produce(name: str) -> pa.Table:
        number = pa.array(WORDS[name], pa.int64())
        partition = pa.array([value % partitions for value in WORDS[name]], pa.int32())
        return pa.table({PARTITION: partition, "number": number})

    def count(block: pa.Table) -> pa.Table:
        number, times = pc.value_counts(block["number"]).flatten()
        return pa.table({"number": number, "times": times})

    tables = shuffle(names, produce, count, partitions=partitions, workers=workers)
    return [(row["number"], row["times"]) for table in tables for row in table.to_pylist()]
