"""What a process of a run costs before it does anything: measured by starting one.

    python -m pipeline.plan.start [SETTINGS SHAPE]

imports what a worker imports and prints the CPU seconds and the peak memory of it as JSON: of a plain one, or of one
that has loaded a model (its settings as JSON, `driver` or `numeric`) and encoded a batch of inputs of a shape.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}

_JOINING = 0.4
"""What it costs a worker to join Ray, as a share of what the imports of a plain one do: 0.4 to 0.6 s of 1.1 s."""

_JOINING_BYTES = 50_000_000
"""What it holds then: connections, buffers and their threads."""


class Start(BaseModel):
    """What a start costs: CPU seconds, and bytes of memory at the peak."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    bytes: float


def measure_start(*arguments: str) -> Start:
    """Starts a process as in the module's docstring, and waits for it."""
    paths = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "pipeline.plan.start", *arguments]
    environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str]) -> None:
    """Does the work of the child."""
    import ray.data  # noqa: F401

    import pipeline.stream.flow

    joining = _JOINING * _cpu_seconds()
    if arguments == ["driver"]:
        import pipeline.curate
        import pipeline.report.build  # noqa: F401
    elif arguments == ["numeric"]:
        import operators.kmeans  # noqa: F401
    elif arguments:
        _encode(arguments[0], json.loads(arguments[1]))
    print(json.dumps({"seconds": joining + _cpu_seconds(), "bytes": _JOINING_BYTES + _peak_bytes()}))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak_bytes() -> int:
    """Of this process alone: what `getrusage` tells includes the parent's memory at the time of the fork."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # not Linux
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _encode(settings: str, shape: list[int]) -> None:
    import numpy as np
    from pydantic import TypeAdapter

    from operators.encoders.settings import ModelSettings
    from pipeline.models import build_encoder

    model: ModelSettings = TypeAdapter(ModelSettings).validate_json(settings)
    encoder = build_encoder(model, device="cpu", threads=1)
    if len(shape) == 3:
        encoder.encode_images(np.zeros((1, *shape), np.uint8))
    else:
        encoder.encode_texts(np.zeros((1, *shape), np.int32))


if __name__ == "__main__":
    main(sys.argv[1:])
