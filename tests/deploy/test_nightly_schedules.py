"""The crontab and the systemd units."""

import configparser
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cronsim import CronSim

from jobs.main import COMMANDS
from jobs.submit import CONFIGS
from operators.errors import LimitExceeded, UserError
from tests.deploy.checkout import DOCKER

UNITS = ["winnow-nightly.service", "winnow-nightly.timer"]


def crontab() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Its variables, and its entries: when and what."""
    lines = [line for line in (DOCKER / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    entries = [line.split(None, 5) for line in lines if not re.match(r"\w+=", line)]
    return variables, [(" ".join(fields), command) for *fields, command in entries]


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(delimiters="=", comment_prefixes="#", interpolation=None)
    parser.optionxform = str  # its keys are written in both cases
    parser.read(DOCKER / name)
    return parser


def test_cron_runs_it_once_a_night():
    _, [(schedule, _)] = crontab()
    times = CronSim(schedule, datetime(2026, 1, 1, tzinfo=UTC))
    assert [next(times) for _ in range(2)] == [datetime(2026, 1, day, 2, tzinfo=UTC) for day in (1, 2)]


def test_cron_passes_the_command_on_whole():
    variables, [(_, command)] = crontab()
    assert not re.search(r"(?<!\\)%", command)  # cron would end the line there
    assert variables["SHELL"] == "/bin/bash"  # of which &>> is
    subprocess.run(["bash", "-n", "-c", command], check=True)
    assert not any("$" in value for value in variables.values())  # cron expands nothing there


def test_both_submit_the_same_night():
    _, [(_, command)] = crontab()
    start = unit(UNITS[0])["Service"]["ExecStart"]
    pattern = re.compile(r"winnow submit \S*nightly\.yaml --command nightly --address \S+")
    assert pattern.search(command)
    assert pattern.search(start)
    assert {"submit", "nightly"} <= COMMANDS.keys()
    assert "nightly" in CONFIGS


def test_the_service_ends_as_the_night_does():
    service = unit(UNITS[0])["Service"]
    assert service["Type"] == "oneshot"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"].split() == [str(UserError.exit_code), str(LimitExceeded.exit_code)]
    assert Path(shlex.split(service["ExecStart"])[0]).is_absolute()


def test_the_timer_makes_up_for_lost_nights():
    timer = unit(UNITS[1])
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert Path(UNITS[0]).stem == Path(UNITS[1]).stem  # by which the timer finds the service


def test_systemd_understands_the_units(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for name in UNITS:  # it looks for the command, too, which is installed elsewhere
        (tmp_path / name).write_text(
            (DOCKER / name).read_text().replace("/opt/winnow/bin/winnow", shutil.which("true"))
        )
    verify = ["systemd-analyze", "verify", *(str(tmp_path / name) for name in UNITS)]
    assert subprocess.run(verify, capture_output=True, text=True, check=True).stderr == ""
    when = unit(UNITS[1])["Timer"]["OnCalendar"]
    subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, check=True)
