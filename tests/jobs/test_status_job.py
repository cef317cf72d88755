"""`winnow status` beside a real curation: while it runs, after it was killed, and when it is done."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from jobs.main import main
from tests.small_pools import sound, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = str(Path(__file__).parents[2])
STEP = """
import os
import pathlib
import time


def keep(table):
    while "1" in str(table["shard"][0]) and not pathlib.Path(os.environ["GATE"]).exists():
        time.sleep(0.05)
    return [True] * table.num_rows
"""


@contextmanager
def curating(folder: Path, gate: str):
    """`winnow curate --log json` in the background, whose second shard waits for the file `gate`; ended in any case.

    (Each run has a gate of its own: a worker may outlive its killed driver.)
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.main", "curate", "c.yaml", "--log", "json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), ROOT]), "GATE": str(folder / gate)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def test_status_of_a_curation(tmp_path, capsys):
    for number in range(2):
        write_tar(tmp_path / f"pool-{number}.tar", [*sound(6), {"jpg": b"no image", "txt": b"text"}])
    (tmp_path / "slow_step.py").write_text(STEP)
    config = {
        "pool": {"format": "webdataset", "path": f"{tmp_path}/pool-*.tar", "max_reject_fraction": 0.5},
        "workspace": "w",
        "steps": [{"step": "python", "function": "slow_step:keep", "columns": ["shard"]}],
        "report": False,
        "resources": {"workers": 2, "object_store_bytes": 200_000_000},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    workspace = str(tmp_path / "w")

    def status(*options):
        code = main(["status", workspace, *options])
        return code, capsys.readouterr().out

    with curating(tmp_path, "closed") as process:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            code, out = status("--json")
            found = json.loads(out) if code == 0 else {"steps": []}
            if found["steps"] and found["steps"][-1]["name"] == "python" and found["steps"][-1]["rows"] == 6:
                break
            time.sleep(0.2)
        assert (found["state"], found["job"], found["pid"]) == ("running", "curate", process.pid)
        assert found["steps"][0]["name"] == "samples"
        assert (found["steps"][0]["rows"], found["steps"][0]["counts"]) == (14, {"rejected": 2})
        code, out = status()
        assert code == 0
        assert f"curate is running at step python: on {found['host']} (process {process.pid}) since " in out
        process.send_signal(signal.SIGKILL)
        process.wait()
        code, out = status()
        assert code == 5
        assert "curate was interrupted at step python: last seen at 2" in out
    (tmp_path / "open").touch()
    with curating(tmp_path, "open") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "14 samples seen = 12 kept + 0 dropped + 2 rejected" in out
    lines = [json.loads(line) for line in err.splitlines()]
    assert len({line["run"] for line in lines}) == 1
    done = {line["step"]: line for line in lines if line.get("event") == "done"}
    assert {name: line["rows"] for name, line in done.items()} == {"python": 6, "ledger": 14}
    assert f"going on after run {found['run']}, which did not end: what is stored for the same settings is used" in err
    assert {line["workspace"] for line in done.values()} == {workspace}
    code, shown = status()
    assert code == 0
    assert "curate is done: at 2" in shown
    assert "14 samples seen = 12 kept + 0 dropped + 2 rejected" in shown
    assert json.loads(status("--json")[1])["run"] == lines[0]["run"] != found["run"]
