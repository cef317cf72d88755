"""A thousand bad shards, in a process of their own: whatever they do to it, the test sees."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.faults
@pytest.mark.parametrize(("seeds", "every"), [(1, 1), pytest.param(20, 1, marks=pytest.mark.long)])
def test_every_sample_of_bad_shards_is_accounted_for(seeds, every):
    command = [sys.executable, "-m", "tests.faults.fuzz", "--seeds", str(seeds), "--every", str(every)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert "no sample lost, none twice" in last
    assert int(last.split()[0].replace(",", "")) >= 1000 * seeds
