"""Files in the temporary folder of a machine: what a process leaves that was killed, the next one there removes."""

import contextlib
import functools
import hashlib
import re
import tempfile
import uuid
from pathlib import Path

from pipeline.machine import Process, this_process

_NAME = re.compile(r"winnow-attempt-([0-9a-f]{16})-(\d+)-(\d*)-[0-9a-f]{32}")
"""Where numbers of processes count, the number of the one that made it, and when that began."""


def temporary_path() -> Path:
    """A name that no file has yet; the first call of a process removes what dead ones have left."""
    folder = Path(tempfile.gettempdir())
    own = this_process()
    _sweep(folder, own)
    return folder / f"winnow-attempt-{_space(own)}-{own.pid}-{own.start}-{uuid.uuid4().hex}"


@functools.lru_cache(maxsize=1)
def _sweep(folder: Path, own: Process) -> None:
    for path in folder.glob("winnow-attempt-*"):
        match = _NAME.fullmatch(path.name)
        if match and match[1] == _space(own) and _maker(own, match).is_gone():
            with contextlib.suppress(OSError):  # somebody else's, or another process was faster
                path.unlink()


def _maker(own: Process, match: re.Match[str]) -> Process:
    return Process(own.host, int(match[2]), own.boot, own.space, match[3])


def _space(process: Process) -> str:
    return hashlib.blake2b(f"{process.boot} {process.space}".encode(), digest_size=8).hexdigest()
