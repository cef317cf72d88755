"""What jobs and their workers say, as JSON lines: with `--log json`, or `WINNOW_LOG=json` in the environment.

    {"time": "2025-06-01T12:00:05.120Z", "level": "info", "run": "8c1f09a2b7de", "workspace": "s3://bucket/w",
     "step": "rules", "event": "progress", "rows": 12000, "total": 50000, ..., "message": "rules: 12,000 of ..."}

`time`, `level`, `run` and `message` are always there; `workspace`, `step`, `shard` and others where they apply. A run
is one invocation of a command, whose workers inherit its id; `WINNOW_RUN` gives it another one, as a scheduler's.

Everything passes through the logger `winnow` of the standard library. Without JSON it has no handler of its own: a
display shows progress, and whoever uses this as a library may handle the rest.
"""

import contextlib
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from operators.errors import ConfigError

VARIABLE, RUN_VARIABLE = "WINNOW_LOG", "WINNOW_RUN"
FORMS = ("text", "json")

_LOGGER = logging.getLogger("winnow")
_MODULES = logging.getLogger("pipeline")
"""Above the loggers of single modules, which Python prints by itself where nobody else does."""
_FIELDS = "winnow_fields"
_OWN_RUN = uuid.uuid4().hex[:12]
"""Of a process that was started by no command."""

_bound: ContextVar[Mapping[str, Any]] = ContextVar("winnow_log_fields")


class JsonHandler(logging.Handler):
    """Writes a line for each record to whatever standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line; what cannot be written is lost, and nothing else."""
        with contextlib.suppress(Exception):
            print(format_json(record), file=sys.stderr, flush=True)


def format_json(record: logging.LogRecord) -> str:
    """One record as a line of JSON."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    line = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "run": run_id()}
    line |= getattr(record, _FIELDS, {}) | {"message": record.getMessage()}
    return json.dumps(line, ensure_ascii=False, default=str)


@contextlib.contextmanager
def configured(form: str | None) -> Iterator[None]:
    """Gives the length of a command its form of log and its run; processes that it starts inherit both.

    Args:
        form: `text` or `json`; None as the environment says, which says text by default.

    Raises:
        ConfigError: the environment names no form that there is.
    """
    form = form or os.environ.get(VARIABLE) or "text"
    if form not in FORMS:
        raise ConfigError(f"{VARIABLE} must be {' or '.join(FORMS)}, got {form!r}")
    given = {VARIABLE: form, RUN_VARIABLE: os.environ.get(RUN_VARIABLE) or uuid.uuid4().hex[:12]}
    try:
        with variables_set(given):
            _prepare()
            yield
    finally:
        _prepare()


@contextlib.contextmanager
def variables_set(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment for the length of a context, also for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, earlier in before.items():
            del os.environ[name]
            if earlier is not None:
                os.environ[name] = earlier


def run_id() -> str:
    """The id of the run that this process works for."""
    return os.environ.get(RUN_VARIABLE) or _OWN_RUN


def wants_json() -> bool:
    """Whether lines are to be JSON."""
    return os.environ.get(VARIABLE) == "json"


def environment() -> dict[str, str]:
    """What workers that do not inherit this environment must be given to say what they have to; empty for nothing."""
    return {VARIABLE: "json", RUN_VARIABLE: run_id()} if wants_json() else {}


def log(level: int, message: str, **fields: Any) -> None:
    """Says something.

    Args:
        level: of the standard library.
        message: for people.
        **fields: for machines, besides those that are bound; those that are None are left out.
    """
    _prepare()
    known = {**_bound.get({}), **fields}
    known = {name: value for name, value in known.items() if value is not None}
    _LOGGER.log(level, message, extra={_FIELDS: known}, stacklevel=2)


def warn(message: str, **fields: Any) -> None:
    """Says what someone may want to look at; seen in JSON only. As `log`."""
    log(logging.WARNING, message, **fields)


@contextlib.contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Adds fields to all that this thread says meanwhile."""
    before = _bound.get({})
    _bound.set({**before, **fields})
    try:
        yield
    finally:
        _bound.set(before)  # and no token: a generator may be closed in another context


def _prepare() -> None:
    """Has the loggers say what they must in this process: a worker has no command that would see to that."""
    for logger in (_LOGGER, _MODULES):
        handlers = [handler for handler in logger.handlers if isinstance(handler, JsonHandler)]
        if wants_json() and not handlers:
            logger.addHandler(JsonHandler())
        for handler in [] if wants_json() else handlers:
            logger.removeHandler(handler)
        logger.propagate = not wants_json()
    if not _LOGGER.handlers:
        _LOGGER.addHandler(logging.NullHandler())  # else Python would print warnings by itself
    _LOGGER.setLevel(logging.INFO)
