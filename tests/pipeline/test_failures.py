import errno
import pickle

import pytest

from operators.errors import ConfigError, InputError, LimitExceeded, ModelError, WinnowError, WorkspaceError
from pipeline.failures import causes, disk_error, winnow_error

FULL = OSError(errno.ENOSPC, "No space left on device", "w/part")


@pytest.mark.parametrize("kind", [WinnowError, ConfigError, InputError, ModelError, WorkspaceError, LimitExceeded])
def test_our_errors_survive_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("a must be 1, got 2")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == "a must be 1, got 2"


def test_the_outermost_error_of_ours_wins():
    inner, outer = InputError("inner"), ConfigError("outer")
    outer.__cause__ = inner
    assert winnow_error(outer) is outer
    assert list(causes(outer)) == [outer, inner]


def test_other_errors_are_neither_ours_nor_the_disks():
    error = ValueError("operators.errors.ConfigError: quoted by someone else")
    assert winnow_error(error) is None
    assert disk_error(error) is None
    assert disk_error(FileNotFoundError(errno.ENOENT, "gone")) is None


def test_a_handled_error_in_the_background_does_not_count():
    error = ValueError("a bug")
    error.__context__ = PermissionError(errno.EACCES, "Permission denied")
    assert disk_error(error) is None


def test_failures_of_training_workers():
    group = RuntimeError("training failed")
    group.worker_failures = {0: RuntimeError("rank 0"), 1: LimitExceeded("loss is nan")}
    assert str(winnow_error(group)) == "loss is nan"


@pytest.fixture
def ray(ray_here):
    import ray

    return ray


@pytest.mark.ray
@pytest.mark.parametrize("place", ["task", "nested task", "actor", "data", "generator"])
def test_errors_come_back_from_workers_as_they_were_raised(ray, place):
    def fail(error, *_):
        raise error

    class Actor:
        def __init__(self, error):
            raise error

        def ready(self):
            return True

    task = ray.remote(max_retries=0)(fail)

    def run(error):
        if place == "task":
            ray.get(task.remote(error))
        elif place == "nested task":
            ray.get(ray.remote(lambda: ray.get(task.remote(error))).remote())
        elif place == "actor":
            ray.get(ray.remote(Actor).remote(error).ready.remote())
        elif place == "generator":
            ray.data.from_items([{"a": 1}]).flat_map(lambda row: (fail(error, row) for _ in range(1))).materialize()
        else:
            ray.data.from_items([{"a": 1}]).map(lambda row: fail(error, row)).materialize()

    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(ConfigError("a must be 1, got 2\nb must be 3, got 4"))
    ours = winnow_error(caught.value)
    assert type(ours) is ConfigError
    assert str(ours) == "a must be 1, got 2\nb must be 3, got 4"

    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(FULL)
    assert winnow_error(caught.value) is None
    file = "" if place == "generator" else ": 'w/part'"
    assert disk_error(caught.value) == f"[Errno 28] No space left on device{file}"
