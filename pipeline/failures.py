"""What really went wrong, when an error comes back through Ray.

A task hands our error back as the `cause` of a `RayTaskError`. When a function of Ray Data or the constructor of an
actor fails, only the printed traceback crosses the process border, so the error is read back from its last lines.
"""

import errno
import re
from collections.abc import Iterator

from operators import errors
from operators.errors import WinnowError

_DISK_ERRORS = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS}

_PRINTED_OURS = re.compile(rf"^{re.escape(errors.__name__)}\.(\w+): (.*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
_PRINTED_DISK = re.compile(r"^(?:OSError|PermissionError): (\[Errno (\d+)\] .*)$", re.MULTILINE)
_ADVICE_OF_RAY = re.compile(r"(?:\n|: ')Failed to [^\n]+ after \d+/\d+ attempts .*", re.DOTALL)
"""What Ray Data adds to the message of an error that a generator raises; of an OSError, in place of the file."""


def winnow_error(error: BaseException) -> WinnowError | None:
    """The error of ours that an exception is, wraps, or quotes; the outermost when there are several."""
    for cause in causes(error):
        if isinstance(cause, WinnowError):
            words = _own_words(str(cause))
            return cause if words == str(cause) else type(cause)(words)
        if printed := _PRINTED_OURS.findall(_text_of_ray(cause)):
            name, message = printed[-1]
            kind = getattr(errors, name, WinnowError)
            return kind(_own_words(message.rstrip()))  # type: ignore[no-any-return]
    return None


def disk_error(error: BaseException) -> str | None:
    """The message of a disk that is full, read-only or closed to us, where that is what an exception comes from."""
    for cause in causes(error):
        if isinstance(cause, PermissionError) or (isinstance(cause, OSError) and cause.errno in _DISK_ERRORS):
            return _own_words(str(cause))
        for message, number in _PRINTED_DISK.findall(_text_of_ray(cause)):
            if int(number) in _DISK_ERRORS:
                return str(message)
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was raised from, outermost first, but what a Ray error wraps before the wrapper."""
    wrapped = [
        getattr(error, "cause", None),  # ray.exceptions.RayTaskError
        getattr(error, "controller_failure", None),  # ray.train.ControllerError
        *getattr(error, "worker_failures", {}).values(),  # ray.train.WorkerGroupError
    ]
    for inner in wrapped:
        if isinstance(inner, BaseException):
            yield from causes(inner)
    yield error
    if error.__cause__ is not None:
        yield from causes(error.__cause__)


def _own_words(message: str) -> str:
    return _ADVICE_OF_RAY.sub("", message)


def _text_of_ray(error: BaseException) -> str:
    """The traceback that an error of Ray quotes; nothing for other errors."""
    return str(error) if type(error).__module__.startswith("ray.") else ""
