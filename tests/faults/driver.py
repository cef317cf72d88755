"""A command of winnow whose commits, and whose workers' commits, come to the faults of a plan.

WINNOW_FAULTS=FOLDER python -m tests.faults.driver COMMAND...
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

import ray

from jobs.main import main
from pipeline import placement
from tests.faults import commits


def start() -> int:
    """Runs the command."""
    _wrap_workers()
    placement._WORTH_AN_ENCODER = 1  # several encoders for a small pool
    commits.install()
    return main()


def _wrap_workers() -> None:
    """Has every worker wrap its writes, too, whatever environment the command gives them."""
    connect = ray.init
    hook = f"{commits.__name__}.{commits.install.__name__}"

    def init(*args: Any, runtime_env: Mapping[str, Any] | None = None, **options: Any) -> Any:
        given = dict(runtime_env or {})
        variables = {
            **given.get("env_vars", {}),
            **{name: os.environ[name] for name in (commits.FOLDER, commits.NIGHT)},
        }
        given |= {"worker_process_setup_hook": hook, "env_vars": variables}
        return connect(*args, runtime_env=given, **options)

    ray.init = init


if __name__ == "__main__":
    sys.exit(start())
