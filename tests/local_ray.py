"""Ray as the tests start it."""

import ray
import ray.data


def start_ray(num_cpus: int) -> None:
    """Starts Ray on this machine; the CPUs are a count for its scheduler, not processors."""
    store = 400_000_000
    ray.init(
        address="local", num_cpus=num_cpus, object_store_memory=store, include_dashboard=False, log_to_driver=False
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
