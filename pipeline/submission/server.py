"""The job server of a cluster: the dashboard on its head, usually at port 8265."""

import contextlib
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from operators.errors import ConfigError, WinnowError
from pipeline.engine import TOKEN_HINT

_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that Ray's client would put in the place of the address that it is given."""
_REACH_SECONDS = 10
_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""They report every upload and every closed connection as a matter of interest."""


def default_address() -> str | None:
    """The address of a job server that the environment names; `RAY_ADDRESS` may also be that of a cluster."""
    found = (os.environ.get(name, "") for name in _ADDRESSES)
    return next((address for address in found if address.startswith(("http://", "https://"))), None)


@contextlib.contextmanager
def job_server(address: str) -> Iterator[JobSubmissionClient]:
    """A client of the job server at an address; what it refuses inside the context is explained.

    Raises:
        ConfigError: nothing listens there, or no job server, or it does not let this client in.
        WinnowError: it answered with an error, or does not answer any more.
    """
    url = address.rstrip("/") if "://" in address else f"http://{address}"
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"--address must be that of the dashboard, such as http://HEAD:8265, got {address}")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        _reach(url)
        with _without_addresses():
            client = JobSubmissionClient(url)
    except AuthenticationError as error:
        raise _refused(url, error) from error
    except (OSError, RuntimeError, ValueError, KeyError, HTTPException) as error:  # the last three: another server
        said = text if (text := str(error)).isprintable() else repr(text)  # some answer in bytes of another protocol
        raise ConfigError(f"--address must be that of the dashboard of a Ray cluster, got {url}: {said}") from error
    try:
        yield client
    except AuthenticationError as error:
        raise _refused(url, error) from error
    except RuntimeError as error:
        raise WinnowError(f"{url} answered: {error}") from error
    except requests.RequestException as error:
        raise WinnowError(f"{url} must answer, got {error}; the same command goes on") from error


def _reach(url: str) -> None:
    """Raises OSError where nothing answers: Ray's client would wait for as long as the system does."""
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=_REACH_SECONDS).close()
    except urllib.error.HTTPError as error:  # an answer, which Ray's client understands better
        error.close()
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # Ray's client has certificates of its own
            raise


def _refused(url: str, error: AuthenticationError) -> ConfigError:
    first = str(error).strip().partition("\n")[0]
    return ConfigError(
        f"--address must be that of a cluster that lets this command in, got {url}: {first} To be let in, {TOKEN_HINT}"
    )


@contextlib.contextmanager
def _without_addresses() -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
