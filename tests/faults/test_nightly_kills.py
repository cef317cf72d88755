"""A night that is killed at a commit, and run again, ends with the snapshot of one that was not: byte for byte."""

import pytest

from tests.faults.attempts import DRIVER
from tests.faults.cases import NIGHTLY
from tests.faults.commits import EVERY, Fault
from tests.faults.outcomes import Tally
from tests.faults.schedules import open_harness

pytestmark = [
    pytest.mark.faults,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_while_it_shows_itself_and_while_it_commits(tmp_path, no_ray):
    """The second night, once its record is there and once more just before its snapshot is."""
    tally = Tally()
    with open_harness(tmp_path) as harness:
        plan = harness.undisturbed(NIGHTLY, remote=False).plan
        counts = plan.commits()
        assert counts["run.json"] == 2
        # Of each attempt, a file of the diff and when it began; of each night, the times, the snapshot and the pointer.
        # So after one more attempt, two more commits, the snapshot has the number that comes after the last one's.
        faults = [Fault("run.json", 1, True, DRIVER), Fault("snapshots", counts["snapshots"], False, DRIVER)]
        harness.strike(NIGHTLY, "two-kills", faults, tally)
    assert tally.good, tally.show()
    assert tally.faults[DRIVER] == 2
    assert tally.runs == 4


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_killed_before_every_commit(tmp_path, no_ray):
    """Of two nights, one kill after the other: each attempt gets to the next file that no attempt before it came to."""
    tally = Tally()
    with open_harness(tmp_path) as harness:
        plan = harness.undisturbed(NIGHTLY, remote=False).plan
        harness.strike(NIGHTLY, "every-kill", [Fault(EVERY, 0, False, DRIVER)], tally)
        places = plan.places()
    assert tally.good, tally.show()
    assert tally.faults[DRIVER] >= places, tally.show()
