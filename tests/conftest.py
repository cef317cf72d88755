"""Fixtures that several packages' tests share."""

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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"needs the real data sets in {DATA}")
    return DATA
