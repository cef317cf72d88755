"""Temporary files, and who removes them."""

import subprocess
import sys
import tempfile

import pytest

from pipeline import temporary
from pipeline.temporary import temporary_path

LEAVE = """
import os, tempfile
from pipeline.temporary import temporary_path
tempfile.tempdir = {folder!r}
path = temporary_path()
path.touch()
print(path.name, flush=True)
os._exit(1)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._sweep.cache_clear()
    return tmp_path


def test_what_a_dead_process_left_goes_and_nothing_else_does(folder):
    code = LEAVE.format(folder=str(folder))
    left = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    elsewhere = left.replace(left.split("-")[2], "0" * 16)  # another container, or an earlier start of this machine
    for name in (elsewhere, "winnow-attempt-mine"):
        (folder / name).touch()
    mine = temporary_path()
    mine.touch()
    assert {path.name for path in folder.iterdir()} == {elsewhere, "winnow-attempt-mine", mine.name}
    temporary._sweep.cache_clear()
    assert temporary_path() != mine
    assert mine.exists()
