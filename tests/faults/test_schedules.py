"""Three seeded schedules of faults; `make faults` has many more, over every kind of step."""

from pathlib import Path
from typing import get_args

import pytest

from pipeline.steps.registry import AnyStep
from tests.faults import cases
from tests.faults.attempts import DRIVER, FULL
from tests.faults.outcomes import Tally
from tests.faults.schedules import draw, open_harness

pytestmark = pytest.mark.faults


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_schedules(tmp_path, no_ray):
    tally = Tally()
    with open_harness(tmp_path) as harness:
        for seed in range(3):
            harness.run("short", seed, tally)
    assert tally.good, tally.show()
    assert tally.schedules == 3
    assert {DRIVER, "s3: slow_down"} <= tally.faults.keys(), tally.show()


def test_every_kind_of_step_is_in_a_case():
    members = [member for member in get_args(get_args(AnyStep)[0]) if isinstance(member, type)]
    kinds = {member.model_fields["step"].annotation.__args__[0] for member in members}
    steps = [step for case in cases.steps(Path()).values() for step in case]
    assert {*kinds, "prune"} == {step["step"] for step in steps}


def test_a_schedule_repeats_itself():
    counts = {"samples": 7, "rules": 3, "ledger.json": 1}
    schedules = [draw(seed, counts) for seed in range(50)]
    assert schedules == [draw(seed, counts) for seed in range(50)]
    for fault in (fault for faults in schedules for fault in faults):
        assert 0 <= fault.commit < counts[fault.step]
        assert not (fault.after and fault.kind == FULL)
