"""One night: what is new is read, judged beside what stands, and becomes a snapshot.

In this order, so that a night that is killed anywhere, and run again, ends with the same snapshot:

1. the steps, as in any curation; what is new of each artifact is published, and nobody sees it yet
2. the diff to the parent, and drift, which may stop the night here
3. the exports, and what shows the latest run: ledger, `run.json`, `summary.json`, `report.html`
4. the snapshot, which commits the night, and `current.json`
"""

import copy
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from operators.errors import LimitExceeded
from pipeline.artifact import Artifact
from pipeline.curate import check, complete, finish, start_run
from pipeline.embed import samples_id
from pipeline.engine import core_unheard, engine
from pipeline.given import Given, Standing, check_order
from pipeline.integrity import read_sealed
from pipeline.ledger import find_ledger
from pipeline.listing import list_shards
from pipeline.manifests import bring_back, has_recorded
from pipeline.nightly.diff import Side, write_diff
from pipeline.nightly.profile import from_record, measure, profile
from pipeline.nightly.settings import Nightly, NightlySettings
from pipeline.nightly.shards import Shards, compare_shards, in_short, known_shards
from pipeline.nightly.snapshot import Found, compose, drift_of
from pipeline.nightly.state import check_same, contents, read_state, renewed
from pipeline.progress import Progress, open_progress
from pipeline.quarantine import rebuilding
from pipeline.record import RECORD, open_run, read_artifacts, recorded_settings
from pipeline.run import Run
from pipeline.shared_disk import check_shared
from pipeline.snapshots import (
    History,
    Snapshot,
    make_current,
    night_path,
    publish_snapshot,
    read_history,
    read_snapshot,
)
from pipeline.status.write import working
from pipeline.storage import to_json
from pipeline.summary import Summary

_SHOWN = ("export", "report")
"""Settings of which the outcome is to be seen even where there is nothing new."""


@dataclass(frozen=True)
class Tonight:
    """What there is to do.

    Attributes:
        history: the snapshots until now.
        parent: the current one, that this night goes on from.
        shards: of the pool.
        is_due: whether there is a snapshot to make.
        contents: of the config, as it was when the night began. What changes later is found by the next one.
        renewed: the titles of the steps that have something else to go by than the parent: their lists changed.
    """

    history: History
    parent: Snapshot | None
    shards: Shards
    is_due: bool
    contents: Mapping[str, Mapping[str, str]]
    renewed: Sequence[str] = ()

    def check(self, settings: NightlySettings) -> None:
        """Raises LimitExceeded where shards changed or vanished and the settings say that this is to stop a night."""
        self.shards.check(settings, self.parent["id"] if self.parent else 0)


@dataclass(frozen=True)
class Night:
    """What was done.

    Attributes:
        snapshot: the current one.
        is_new: whether this night made it.
        summary: of the run; None where nothing was written.
    """

    snapshot: Snapshot
    is_new: bool
    summary: Summary | None = None


@dataclass(frozen=True)
class _State:
    """What a night goes by that comes after another; of the first night nothing.

    Attributes:
        given: what the first night found.
        standing: the verdicts that stand.
        side: the samples and all verdicts of the parent, to compare with.
        artifacts: of the parent, by name.
    """

    given: Given
    standing: Standing | None = None
    side: Side | None = None
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)


def run_night(config: Nightly, address: str | None = None) -> Night:
    """Goes through one night, or finds that there is nothing new.

    Args:
        config: of the job.
        address: of a Ray cluster, if any.

    Raises:
        UserError: as a curation; the settings are not those of the parent; another run has the workspace.
        LimitExceeded: as a curation; shards changed or vanished, or drift, where that is to stop a night.
    """
    config = config.resolved()
    with core_unheard(), open_progress() as display, working(config.store, "nightly", display) as progress:
        bring_back(config.store)
        tonight = plan_night(config)
        if tonight.parent and not tonight.is_due:
            return _look_again(config, tonight.history, tonight.parent, address, progress)
        tonight.check(config.nightly)
        check(config)
        # Read once: what is found damaged of it, and moved away, is made again from what is in memory.
        state = _read_state(config, tonight.parent)
        with engine(config.resources, address) as workers:
            check_shared(config.store)
            work = partial(_night, config, tonight, state, workers=workers, progress=progress)
            night = rebuilding(config.store, progress, workers, work)
        bring_back(config.store)
        return night


def roll_back(config: Nightly, number: int, address: str | None = None) -> Night:
    """Makes an earlier snapshot current: the next night goes on from it. None is forgotten, and ids go on.

    What shows the latest run, and the exports of the config, become those of that snapshot.

    Raises:
        UserError: there is no such snapshot, its settings are others, or its shards are no longer there.
    """
    config = config.resolved()
    with core_unheard(), open_progress() as display, working(config.store, "nightly", display) as progress:
        bring_back(config.store)
        snapshot = read_snapshot(config.store, number)
        check_same(snapshot, config)
        summary = _show(config, snapshot, address, progress)
        make_current(config.store, number)
    return Night(snapshot, False, summary)


def plan_night(config: Nightly) -> Tonight:
    """Compares the pool with the current snapshot. Raises as `run_night`, but for shards."""
    for step in config.steps:
        step.check_nightly()
    check_order(config.steps, config.nightly.policy)
    store, now = config.store, contents(config)
    history = read_history(store)
    shards = list_shards(config.pool)
    if history.current is None:
        return Tonight(history, None, Shards(shards, [shard.name for shard in shards]), True, now)
    parent = read_snapshot(store, history.current)
    check_same(parent, config)
    known = known_shards(store, parent, {shard.name: samples_id(config.pool, shard) for shard in shards})
    found = compare_shards(config.pool, shards, known, config.nightly, parent["shards"]["left_out"])
    other = renewed(parent, config, now)
    redrawn = config.nightly.policy == "rebalance" and parent["policy"] != "rebalance"
    # What was damaged and moved away is made again by the next night, whatever is new.
    is_due = found.differ or bool(other) or redrawn or not has_recorded(store, parent)
    return Tonight(history, parent, found, is_due, now, other)


def _night(config: Nightly, tonight: Tonight, state: _State, *, workers: int, progress: Progress) -> Night:
    parent, number = tonight.parent, tonight.history.next
    clock = time.monotonic()
    begun = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host": socket.gethostname()}
    # A copy: what the run adds to it would be taken as given when the work starts over without it.
    given, standing = copy.deepcopy(state.given), state.standing
    run = start_run(config, tonight.shards.used, workers=workers, progress=progress, given=given, standing=standing)
    complete(config, run)
    snapshot = compose(config, run, number, parent, _find(config, run, tonight, state.side))
    _check_drift(snapshot)
    for name, artifact in run.artifacts.items():
        run.artifacts[name] = replace(artifact, rows_new=count_new(artifact, state.artifacts.get(name)))
    config.store.replace(night_path(number), to_json(begun))  # the report says so
    summary = finish(config, run, snapshot)
    rows_new = {step.name: step.rows_new for step in summary.steps}
    times = {**begun, "seconds": round(time.monotonic() - clock, 3), "rows_new": rows_new}
    config.store.replace(night_path(number), to_json(times))
    publish_snapshot(config.store, snapshot)
    return Night(snapshot, True, summary)


def _read_state(config: Nightly, parent: Snapshot | None) -> _State:
    if parent is None:
        return _State(Given())
    store = config.store
    given, standing = read_state(store, parent, config, config.nightly.policy)
    artifacts = read_artifacts(store, parent)
    side = Side(artifacts["samples"], [artifacts[name] for name in parent["verdicts"]])
    return _State(given, standing, side, artifacts)


def count_new(artifact: Artifact, before: Artifact | None) -> int:
    """The rows of the parts that the parent has not, whether this attempt at the night made them or one before it."""
    known = set(before.column("path")) if before else set()
    return sum(part.counts["in"] for part in artifact.parts if part.path not in known)


def _find(config: Nightly, run: Run, tonight: Tonight, before: Side | None) -> Found:
    """The diff to the parent, and the profile of the first night or the drift of a later one."""
    parent, shards, store = tonight.parent, tonight.shards, config.store
    scores = [step.title for step in config.steps if step.gives_score]
    gone = dict.fromkeys(shards.vanished, "shard_vanished") | dict.fromkeys(shards.left_out, "shard_changed")
    side = Side(run.samples, run.verdicts)
    diff = write_diff(store, before, side, gone, workers=run.workers, progress=run.progress)
    if parent is None:
        return Found(shards, diff, tonight.contents, profile(run, scores, set(shards.new)))
    if not shards.new:
        return Found(shards, diff, tonight.contents)
    fit = from_record(read_snapshot(store, parent["fitted"])["profile"])
    new = profile(run, scores, set(shards.new), like=fit)
    return Found(shards, diff, tonight.contents, drift=measure(new, fit, config.nightly.drift))


def _check_drift(snapshot: Snapshot) -> None:
    """Raises LimitExceeded where drift is to stop the night."""
    if found := [drift for drift in drift_of(snapshot) if drift.mark == "stop"]:
        new = snapshot["shards"]["new"]
        advice = (
            f"nothing of this night is published: look at its {len(new)} new shards ({in_short(new)}), take them out "
            "of the pool, or raise the threshold, or fit everything anew in another workspace"
        )
        raise LimitExceeded("\n".join([*(drift.sentence for drift in found), advice]))


def _look_again(config: Nightly, history: History, current: Snapshot, address: str | None, progress: Progress) -> Night:
    """Where there is nothing new: sees to it that what shows the latest run shows the current snapshot."""
    summary = None if _is_shown(config, current) else _show(config, current, address, progress)
    if not history.pointed:
        make_current(config.store, current["id"])
    return Night(current, False, summary)


def _is_shown(config: Nightly, current: Snapshot) -> bool:
    """Whether the record, the ledger, and the exports that were asked for are those of a snapshot."""
    try:
        record = read_sealed(config.store, RECORD)
    except FileNotFoundError:
        return False
    ledger = find_ledger(config.store)
    settings = recorded_settings(config)
    return (
        record.get("snapshot") == current["id"]
        and ledger is not None
        and ledger.digest == current["ledger"]
        and all(record["config"].get(name) == settings[name] for name in _SHOWN)
    )


def _show(config: Nightly, snapshot: Snapshot, address: str | None, progress: Progress) -> Summary:
    """Writes what shows the latest run, and the exports, as they are of a snapshot."""
    check(config)
    store, number = config.store, snapshot["id"]

    def show() -> Summary:
        run, _ = open_run(store, workers=workers, progress=progress, snapshot=number, config=config)
        return finish(config, run, snapshot)

    with engine(config.resources, address) as workers:
        check_shared(store)
        return rebuilding(store, progress, workers, show)
