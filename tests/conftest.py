"""Fixtures that several packages' tests share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.local_ray import start_ray

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ray_stops() -> Iterator[None]:
    """Ends whatever Ray the last module left up."""
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def ray_here(ray_stops) -> None:
    """Ray on this machine, left up for the next module that asks for it: a start, and cold workers, cost seconds."""
    if not ray.is_initialized():
        start_ray(num_cpus=4)


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """No Ray at first, and none afterwards: for modules that start one of their own."""
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server on this machine: moto's."""
    import s3fs  # both are slow, and most tests need neither
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"needs the real data sets in {DATA}")
    return DATA
