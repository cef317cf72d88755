"""A command of winnow whose commits, and whose workers' commits, come to the faults of a plan.

WINNOW_FAULTS=FOLDER python -m tests.faults.driver COMMAND...
"""

import functools
import os
import sys

import ray

from jobs.main import main
from tests.faults import commits


def start() -> int:
    """Runs the command."""
    hook = f"{commits.__name__}.{commits.install.__name__}"
    variables = {commits.FOLDER: os.environ[commits.FOLDER]}
    ray.init = functools.partial(ray.init, runtime_env={"worker_process_setup_hook": hook, "env_vars": variables})
    commits.install()
    return main()


if __name__ == "__main__":
    sys.exit(start())
