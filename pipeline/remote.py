"""Opening file systems, and what is tried again when one misbehaves: the one policy for every byte read or written.

Three layers lie between a store under load and a run, inside out:

    botocore    each request: 5xx, throttling (503 SlowDown), resets and timeouts, with pauses that double from one
                second to twenty, each drawn at random below that (full jitter)
    s3fs        each request, and the reading of its body; it learns here that "access denied" may pass, too
    `retry`     each operation of a workspace or a reader: what is left over, on whatever store

What a store says about the request itself (no such bucket, unknown key, wrong signature) is final at once.
"""

import errno
import random
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import fsspec

from operators.errors import WinnowError
from pipeline import logs, metrics

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5

REQUEST_ATTEMPTS = 6
"""Of one request by botocore: half a minute at most."""

_S3 = ("s3", "s3a")
_FINAL_KINDS = (
    WinnowError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_FINAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
_FINAL_CODES = {
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "NoSuchBucket"),
    *("InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed", "NotImplemented"),
}
_FINAL_NUMBERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Of a disk. What a store answers has a code instead."""

_PASSING_CODES = {
    *("AccessDenied", "403", "SlowDown", "503", "ServiceUnavailable", "500", "InternalError", "502", "504"),
    *("RequestTimeout", "ConditionalRequestConflict", "OperationAborted"),
}
"""Answers that s3fs is to try again. Under load S3 denies access even to the entitled."""


def open_location(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The file system of a path or URL, and its path there.

    Args:
        url: a local path, or whatever fsspec opens.
        options: for fsspec; of S3, `config_kwargs.retries` replaces `REQUEST_ATTEMPTS`.

    Raises:
        ImportError, ValueError: of fsspec, for a protocol that it does not know.
    """
    given = dict(options or {})
    if url.partition("://")[0] in _S3:
        _teach_s3fs()
        config = dict(given.get("config_kwargs") or {})
        config.setdefault("retries", {"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS})
        given["config_kwargs"] = config
    fs, path = fsspec.core.url_to_fs(url, **given)
    return fs, path


def read_whole(url: str, options: Mapping[str, Any] | None = None) -> bytes:
    """The content of a file that a config names. Raises FileNotFoundError, or the store's own error."""
    fs, path = open_location(url, options)

    def read() -> bytes:
        with fs.open(path, "rb") as file:
            return bytes(file.read())

    return retry(read)


def retry(action: Callable[[], T]) -> T:
    """Calls `action` until it succeeds, at most `ATTEMPTS` times with doubling pauses and full jitter.

    Each store brings its own tree of errors (botocore, aiohttp, OSError), so all are tried again but those that cannot
    pass: see `is_final`.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except Exception as error:
            if is_final(error):
                raise
            tell_retry(error, attempt + 1)
            time.sleep(random.uniform(0, FIRST_PAUSE_SECONDS * 2**attempt))
    return action()


def tell_retry(error: BaseException, attempt: int) -> None:
    """Counts and logs that an operation is tried again; by the error's kind, as its words may be anything."""
    kind = error_code(error) or type(error).__name__
    metrics.count(metrics.STORAGE_RETRIES, error=kind)
    logs.warn(f"a store failed and is asked again: {kind}", event="retry", error=kind, attempt=attempt)


def is_final(error: BaseException) -> bool:
    """Whether to try again would meet the same error: a missing file, a full disk, a wrong key, an error of ours."""
    if isinstance(error, _FINAL_KINDS) or type(error).__name__ in _FINAL_NAMES:
        return True
    if (code := error_code(error)) is not None:
        return code in _FINAL_CODES
    return isinstance(error, OSError) and error.errno in _FINAL_NUMBERS


def error_code(error: BaseException) -> str | None:
    """What S3 calls an error, as `AccessDenied` or `503`, where it comes from an answer of S3."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, Mapping):
            code = response.get("Error", {}).get("Code")
            return None if code is None else str(code)
    return None


def is_s3(fs: Any) -> bool:
    """Whether a file system is s3fs's."""
    return "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def version_of(info: Mapping[str, Any]) -> str:
    """What a store changes when it changes a file: the ETag, else the time of modification; empty where it has none."""
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""


@lru_cache(maxsize=1)
def _teach_s3fs() -> None:
    """Tells s3fs once in each process which answers to try again besides its own, and besides what others told it."""
    import s3fs.core  # not needed, and slow to import, where everything lies on disks

    before = s3fs.core.CUSTOM_ERROR_HANDLER
    s3fs.core.set_custom_error_handler(lambda error: error_code(error) in _PASSING_CODES or bool(before(error)))
