"""Tests what a process keeps of the memory that a training has freed."""

import platform
from pathlib import Path

import pytest
import torch

from pipeline.training import freed_memory

_BYTES = 256 * 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_while_training_and_returned_at_the_end() -> None:
    before = resident()
    with freed_memory.kept():
        torch.ones(_BYTES // 4)
        assert resident() - before > _BYTES / 2
    assert resident() - before < _BYTES / 2
    torch.ones(_BYTES // 4)
    assert resident() - before < _BYTES / 2
