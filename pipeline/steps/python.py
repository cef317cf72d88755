"""`python`: the user's own filter or score, a function on a batch of rows.

The function takes a `pyarrow.Table` of at most `batch_rows` rows of one shard with the columns asked for, and returns
one value a row: booleans keep or drop (`gives: verdict`, reason `python`), numbers are a score (`gives: score`, every
row passes). It runs in the workers, once for each batch, in no particular order: it must not depend on other batches.
Its module is found as Python finds modules, and in the working folder.
Columns: those of `samples` (metadata comes as JSON text) and the names of earlier score steps.
"""

import hashlib
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from operators.errors import ConfigError, InputError
from pipeline.artifact import Artifact
from pipeline.run import Read, Run
from pipeline.steps.base import Step, reasons
from pipeline.storage import digest
from pipeline.stream.work import SAMPLES_SCHEMA
from pipeline.units import Verdicts


class Python(Step):
    """Settings of the step.

    Attributes:
        function: `package.module:name`, importable in the workers.
        columns: what the function sees.
        gives: whether it judges or scores.
        batch_rows: rows of a batch at most.
    """

    step: Literal["python"]
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    columns: tuple[str, ...] = Field(default=("uid", "key", "width", "height", "caption", "metadata"), min_length=1)
    gives: Literal["verdict", "score"] = "verdict"
    batch_rows: int = Field(default=4096, ge=1)

    def scores(self) -> Sequence[str]:
        """Columns that are not of `samples` name score steps."""
        return [name for name in self.columns if name not in SAMPLES_SCHEMA.names]

    @property
    def gives_score(self) -> bool:
        """As the settings say."""
        return self.gives == "score"

    def scored_by(self, models: Mapping[str, Any]) -> str:
        """The function and its module's source."""
        return json.dumps([self.function, digest(_source(self.function))])

    def check(self) -> None:
        """Imports the function before any work. Raises ConfigError where that fails."""
        load_function(self.function)

    def content(self) -> Mapping[str, str]:
        """The source of the function's module."""
        return {"function": digest(_source(self.function))}

    def identity(self, run: Run) -> dict[str, Any]:
        """Covers the source of the function's module, so that an edited function is a new step."""
        return super().identity(run) | {"source": hashlib.sha256(_source(self.function).encode()).hexdigest()}

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts or scores."""
        stored = {name: name for name in self.columns if name in SAMPLES_SCHEMA.names}
        reads = [Read(run.samples, stored)] if stored else []
        reads += [Read(run.artifacts[name], {"score": name}) for name in self.scores()]
        plan = run.plan(self.title, self.identity(run), reads)
        if published := plan.published:
            return published
        if self.gives_score:
            return plan.map_attributes(partial(score, self), info={"scored_by": self.scored_by(run.models)})
        return plan.map_verdicts(partial(judge, self))


def judge(settings: Python, table: pa.Table) -> Verdicts:
    """Keeps the rows for which the function gives True."""
    kept_N = _apply(settings, table)
    if kept_N.dtype != np.bool_:
        raise ConfigError(f"{settings.function} must return booleans to give a verdict, got {kept_N.dtype}")
    return Verdicts(kept_N, reasons(kept_N, "python"))


def score(settings: Python, table: pa.Table) -> pa.Table:
    """The function's numbers as float64; NaN becomes null."""
    values_N = _apply(settings, table)
    if values_N.dtype.kind not in "iuf":
        raise ConfigError(f"{settings.function} must return numbers to give a score, got {values_N.dtype}")
    values_N = values_N.astype(np.float64)
    return pa.table({"score": pa.array(values_N, mask=np.isnan(values_N))})


def load_function(name: str) -> Callable[[pa.Table], Any]:
    """Imports `package.module:name`. Raises ConfigError."""
    module, _, attribute = name.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:  # a console script starts with its own folder instead
        sys.path.append(folder)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the module, which may raise anything
        got = f"{name!r}: {describe(error)}"
        raise ConfigError(f"function must be importable as package.module:name, got {got}") from error
    if not callable(function):
        raise ConfigError(f"function must be callable, got {name!r}, a {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def describe(error: Exception) -> str:
    """An error of the user's code in one line: type, message, and the line that raised it."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


def _source(name: str) -> str:
    """The source of a function's module; empty for what is not written in Python."""
    module = inspect.getmodule(load_function(name))
    try:
        return inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        return ""


def _apply(settings: Python, table: pa.Table) -> NDArray[Any]:
    function = load_function(settings.function)
    results = []
    for start in range(0, table.num_rows, settings.batch_rows):
        batch = table.slice(start, settings.batch_rows)
        try:
            result = np.asarray(function(batch))
        except Exception as error:
            raise InputError(f"{settings.function} must not raise, got {describe(error)}") from error
        if result.shape != (batch.num_rows,):
            raise ConfigError(
                f"{settings.function} must return one value for each of {batch.num_rows} rows, got shape {result.shape}"
            )
        results.append(result)
    empty: NDArray[Any] = np.zeros(0, dtype=np.float64 if settings.gives_score else np.bool_)
    return np.concatenate(results) if results else empty
