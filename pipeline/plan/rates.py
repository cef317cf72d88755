"""What this machine does a second: what formulas are fed with, each number measured by a short run of the real code.

All seconds are CPU seconds of one core. A file given by `--rates` replaces any of them, for machines unlike this one.

Legend: N rows, K clusters, D dimensions.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from operators.errors import ConfigError
from operators.hashing import generator
from pipeline.plan.encoding import Encoding, measure_encoding
from pipeline.plan.machines import Machines
from pipeline.plan.sample import Sampled
from pipeline.plan.start import Start, measure_start
from pipeline.stream.work import Need

_ROWS = 16_384
_CLUSTERS = (32, 512)
_BLOCKS = (1024, 4096)
_KEYS = 200_000
_RUNS = 3
_NUMERIC = ("row_seconds", "product_seconds", "compared_seconds", "pair_seconds")


class Rates(BaseModel):
    """The numbers.

    Attributes:
        encodings: by need, such as `clip.image`.
        worker, numeric, driver: what a process costs that starts: a plain worker, one that imports torch for
            clustering, the driver.
        row_seconds, product_seconds: of one k-means iteration or assignment: for each row, and for each of its
            K x D products.
        compared_seconds, pair_seconds: of the comparison of a cluster's members: for each row, and for each of the
            D products of each pair.
        rank_seconds: to find, for each row, whether it is among the best of its group.
        repeat_seconds: to sort, for each row, the keys of which repeated ones are sought.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encodings: dict[str, Encoding] = Field(default_factory=dict)
    worker: Start
    driver: Start
    numeric: Start
    row_seconds: float = Field(ge=0)
    product_seconds: float = Field(ge=0)
    compared_seconds: float = Field(ge=0)
    pair_seconds: float = Field(ge=0)
    rank_seconds: float = Field(ge=0)
    repeat_seconds: float = Field(ge=0)


def read_overrides(path: str | None) -> dict[str, Any]:
    """What a rates file says, JSON or YAML: any part of `Rates`, or a whole plan with them. Raises ConfigError."""
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"rates must be a file of JSON or YAML, got {path}: {error}") from error
    rates = found.get("rates", found) if isinstance(found, dict) else found
    encodings = rates.get("encodings", {}) if isinstance(rates, dict) else {}
    for part in (rates, encodings, *(encodings.values() if isinstance(encodings, dict) else ())):
        if not isinstance(part, dict):
            raise ConfigError(f"rates must hold names with numbers, got {part!r} in {path}")
    return dict(rates)


def measure_rates(
    sampled: Sampled,
    models: Mapping[str, Any],
    needs: Sequence[Need],
    machines: Machines,
    overrides: Mapping[str, Any],
    *,
    numeric: bool,
) -> Rates:
    """Measures what the overrides leave open.

    Args:
        sampled: of the pool, with inputs for the models.
        models: settings by name.
        needs: (model, modality) pairs to be measured.
        machines: that the plan is for.
        overrides: `read_overrides`.
        numeric: whether any step does arithmetic; otherwise torch is not imported for them.

    Raises:
        ConfigError: the overrides are no rates.
    """
    given = overrides.get("encodings", {})
    encodings = {
        need.name: _encoding(models[need.model], need, sampled, machines, given.get(need.name, {}))
        for need in needs
        if need.name in sampled.inputs
    }
    measures: dict[str, Callable[[], Any]] = {
        "worker": partial(_start),
        "driver": partial(_start, "driver"),
        "numeric": partial(_start, *(["numeric"] if numeric else [])),
        "rank_seconds": _measure_ranking,
        "repeat_seconds": _measure_repeats,
    }
    found: dict[str, Any] = {name: measure() for name, measure in measures.items() if name not in overrides}
    dims = [encoding["dim"] for name, encoding in encodings.items() if name.endswith(".image")]
    if numeric and dims and not overrides.keys() >= set(_NUMERIC):
        found |= measure_numeric(max(dims))
    try:
        return Rates.model_validate({**dict.fromkeys(_NUMERIC, 0.0), **found, **overrides, "encodings": encodings})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"rates.{where} must be one of the rates of a plan: {first['msg']}") from error


def _start(*arguments: str) -> dict[str, float]:
    return measure_start(*arguments).model_dump()


def _encoding(
    settings: Any, need: Need, sampled: Sampled, machines: Machines, given: Mapping[str, Any]
) -> dict[str, Any]:
    measured = measure_encoding(settings, need.modality, sampled.inputs[need.name], machines, given)
    return {**measured.model_dump(), **({**given, "origin": "given"} if given else {})}


def measure_numeric(dim: int) -> dict[str, float]:
    """The rates of k-means and of comparing members, on random rows of so many dimensions."""
    import torch

    from operators.duplicates import Groups, Rule, open_block, settle
    from operators.embeddings import to_unit_float16
    from operators.kmeans import Part
    from operators.near_pairs import screen, thresholds

    torch.set_num_threads(1)
    x_ND, _ = to_unit_float16(generator(0, "plan").standard_normal((_ROWS, dim), dtype=np.float32))

    def iterate(clusters: int) -> float:
        part = Part(x_ND)
        # Two in turn: under the same ones again no row changes cluster, and nothing is summed.
        centroids = cycle(x_ND[start : start + clusters].astype(np.float64) for start in (0, clusters))
        return _cpu_seconds(lambda: part.step(next(centroids)))

    def compare(rows: int) -> float:
        key_N3 = np.zeros((rows, 3), np.uint64)
        key_N3[:, 2] = np.arange(rows)
        rule = Rule("cover", thresholds(np.array([0.05])), 0, 1)

        return _cpu_seconds(
            lambda: settle(open_block(screen(x_ND[:rows]), key_N3, 1), None, rule, Groups.singles(rows))
        )

    # A row takes a + b D K seconds; of the comparison of N rows, a + b D N / 2.
    row, product = line_through(*_CLUSTERS, *(iterate(clusters) / _ROWS for clusters in _CLUSTERS))
    compared, pair = line_through(*_BLOCKS, *(compare(rows) / rows for rows in _BLOCKS))
    return {
        "row_seconds": row,
        "product_seconds": product / dim,
        "compared_seconds": compared,
        "pair_seconds": 2 * pair / dim,
    }


def line_through(few: int, many: int, short: float, long: float) -> tuple[float, float]:
    """The line through two measured points, as its value at 0 and its slope; neither is below 0.

    Where noise hides the slope, all of the longer time is taken for it: a plan must not say that work is free.
    """
    slope = (long - short) / (many - few)
    if slope <= 0:
        return 0.0, long / many
    return max(0.0, short - slope * few), slope


def _measure_ranking() -> float:
    from operators.selection import Keys, begin, choose_digits, count_digits, narrow, summarise

    rng = generator(0, "ranks")
    value_N, high_N, low_N = (rng.integers(0, 2**63, _KEYS, dtype=np.uint64) for _ in range(3))
    keys = Keys(rng.integers(0, 100, _KEYS, dtype=np.int32), value_N, high_N, low_N)

    def run() -> None:
        search = begin(summarise(keys, 100), np.full(100, _KEYS // 400))
        while not search.done:
            search = choose_digits(search, count_digits(search, narrow(search, keys)))

    return _cpu_seconds(run) / _KEYS


def _measure_repeats() -> float:
    import pyarrow as pa

    from pipeline.uniqueness import find_in_block

    rng = generator(0, "repeats")
    names = ("key_high", "key_low", "high", "low")
    columns: dict[str, Any] = {name: rng.integers(0, 2**63, _KEYS, dtype=np.uint64) for name in names}
    block = pa.table({**columns, "unit": np.zeros(_KEYS, np.int32), "row": np.arange(_KEYS)})
    return _cpu_seconds(lambda: find_in_block(("high", "low"), block)) / _KEYS


def _cpu_seconds(run: Callable[[], Any]) -> float:
    """The median of some runs, after one that imports and allocates."""
    seconds = []
    for _ in range(1 + _RUNS):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:])
