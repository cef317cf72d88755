"""Fixtures that several packages' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray on this machine for the tests of one module."""
    ray.init(address="local", num_cpus=4, object_store_memory=400_000_000, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"needs the real data sets in {DATA}")
    return DATA
