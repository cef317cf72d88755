import io
import re

import pytest
from rich.console import Console

from pipeline.console import print_table, show
from pipeline.progress import LogProgress, Progress, TerminalProgress, describe_seconds, open_progress


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def lines_of(stream):
    """The log lines without their timestamps, which must all be there."""
    stamped = [re.fullmatch(r"1970-01-01T00:00:00Z (.*)", line) for line in stream.getvalue().splitlines()]
    return [match[1] for match in stamped]


@pytest.fixture
def log(clock):
    stream = io.StringIO()
    progress = LogProgress(stream, clock=clock, now=lambda: 0.0)
    progress.lines = lambda: lines_of(stream)
    return progress


def test_a_log_of_one_step(log, clock):
    with log, log.step("embed", total=50_000) as step:
        for _ in range(12):
            clock.seconds += 1
            step.advance(1000, rejected=1, kept=0)
    assert log.lines() == [
        "embed: started, 50,000 rows",
        "embed: 5,000 of 50,000 rows (10 %), 1,000 rows/s, 45 s left, 5 rejected",
        "embed: 10,000 of 50,000 rows (20 %), 1,000 rows/s, 40 s left, 10 rejected",
        "embed: done, 12,000 rows in 12 s, 12 rejected",
    ]


def test_steps_that_overlap_keep_their_own_time(log, clock):
    with log.step("a") as a, log.step("b", unit="rounds") as b:
        clock.seconds = 3
        a.advance(3)
        clock.seconds = 6
        b.advance(3)
        a.advance(3)
        b.advance(1)
    assert log.lines() == [
        "a: started",
        "b: started",
        "b: 3 rounds, 0.5 rounds/s",
        "a: 6 rows, 1 rows/s",
        "b: done, 4 rounds in 6.0 s",
        "a: done, 6 rows in 6.0 s",
    ]


def test_a_step_that_fails_says_so(log, clock):
    def fit():
        with log.step("fit", total=3) as step:
            step.advance(1)
            clock.seconds = 75
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fit()
    assert log.lines() == ["fit: started, 3 rows", "fit: failed after 1 rows in 1 min 15 s"]


def test_a_step_of_nothing(log):
    with log.step("empty", total=0) as step:
        assert step.rate == 0
        assert step.seconds_left is None
    log.note("empty: reused")
    assert log.lines() == ["empty: started, 0 rows", "empty: done, 0 rows in 0.0 s", "empty: reused"]


def test_many_advances_make_few_lines(log, clock):
    with log.step("read") as step:
        for _ in range(1024):
            clock.seconds += 1 / 64
            step.advance(1)
    assert len(log.lines()) == 5  # start, at 5, 10 and 15 s, end
    assert step.rows == 1024


def test_more_rows_than_the_total_leave_no_negative_time(log, clock):
    with log.step("read", total=10) as step:
        clock.seconds = 5
        step.advance(20)
    assert log.lines()[1] == "read: 20 of 10 rows (200 %), 4 rows/s, 0.0 s left"


def test_without_a_display_steps_still_count():
    progress = Progress()
    with progress, progress.step("embed", total=10) as step:
        step.advance(4, kept=3)
        step.advance(6, kept=2)
        progress.note("nothing")
    assert (step.rows, step.counts["kept"]) == (10, 5)


def test_the_display_fits_the_stream(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert type(open_progress(io.StringIO())) is LogProgress
    assert type(open_progress(Terminal())) is TerminalProgress
    monkeypatch.setenv("TERM", "dumb")
    assert type(open_progress(Terminal())) is LogProgress


def test_a_terminal_shows_the_last_state_of_each_step():
    stream = Terminal()
    with TerminalProgress(Console(file=stream, force_terminal=True, width=100)) as progress:
        with progress.step("embed [0]", total=20_000) as step:
            step.advance(20_000, rejected=1_234)
        progress.note("fit: [reused]")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"embed \[0\] .*done, 20,000 rows in 0\.0 s, 1,234 rejected", shown)
    assert "fit: [reused]\n" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, text):
    assert describe_seconds(seconds) == text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (12_345, "12,345"),
        (0.12345, "0.1235"),
        (61.0, "61"),
        (12_345.6, "12,346"),
        ("a", "a"),
    ],
)
def test_cells(cell, text):
    assert show(cell) == text


STEPS = [["rules", 12_345_678, 0.5], ["prune", 6, None]]


def test_a_table_off_a_terminal_is_plain_text():
    stream = io.StringIO()
    print_table(["step", "rows", "seconds"], STEPS, stream)
    assert stream.getvalue() == (
        "step         rows  seconds\n"
        "-----  ----------  -------\n"
        "rules  12,345,678      0.5\n"
        "prune           6        -\n"
    )  # fmt: skip


def test_a_table_of_no_rows():
    stream = io.StringIO()
    print_table(["step", "rows"], [], stream)
    assert stream.getvalue() == "step  rows\n----  ----\n"


@pytest.mark.parametrize("width", [5, 20, 200])
def test_a_terminal_of_any_width_shows_whole_numbers(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    print_table(["a step with a long [name]", "rows"], [["a long text in a cell", 12_345_678]], stream)
    assert "12,345,678" in stream.getvalue()
    assert "…" not in stream.getvalue()
