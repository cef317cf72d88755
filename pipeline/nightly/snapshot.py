"""The record of a night: `snapshots/<id>.json`.

    format_version, id, parent, policy
    config, artifacts, clusters, embeddings, verdicts      as in `run.json`
    models        name -> what it computes
    contents      step -> what its settings name and do not hold -> digest
    given         thresholds, fits, filters: found once, applied for ever
    shards        count; new, changed, vanished: names; left_out: name -> content that is not used
    counts        seen, kept, dropped (by step and reason), rejected (by reason)
    diff          added, removed; files: of `pipeline.nightly.diff`
    fitted        the snapshot whose `profile` drift is measured against
    profile       of the first one only: `pipeline.nightly.profile`
    drift         measures of the new rows; none where there are none, and of the first night
    warnings      what someone should look at, in sentences
    ledger        digest

Nothing in it depends on when, where or in how many attempts it was made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.ledger_writer import ledger_address
from pipeline.nightly.diff import Diff
from pipeline.nightly.profile import Drift, Profile, to_record
from pipeline.nightly.settings import Nightly
from pipeline.nightly.shards import Shards
from pipeline.nightly.state import identities
from pipeline.record import describe
from pipeline.run import Run
from pipeline.snapshots import FORMAT_VERSION, Snapshot


@dataclass(frozen=True)
class Found:
    """What a night found out besides its verdicts.

    Attributes:
        shards: of the pool.
        diff: to the parent.
        contents: of the config, as it was before any step ran.
        profile: of the first night's rows; None later.
        drift: of a later night's new rows.
    """

    shards: Shards
    diff: Diff
    contents: Mapping[str, Mapping[str, str]]
    profile: Profile | None = None
    drift: Sequence[Drift] = ()


def compose(config: Nightly, run: Run, number: int, parent: Snapshot | None, found: Found) -> Snapshot:
    """Puts the record of a night together.

    Args:
        config: of the job.
        run: with all its artifacts; its `given` holds what was found once.
        number: the id.
        parent: the snapshot that the night went on from.
        found: what else there is to say.
    """
    assert run.given is not None
    first, *later = run.verdicts
    fitted = number if parent is None else parent["fitted"]
    return {
        "format_version": FORMAT_VERSION,
        "id": number,
        "parent": parent and parent["id"],
        "policy": config.nightly.policy,
        **describe(config, run),
        "models": identities(config),
        "contents": found.contents,
        "given": asdict(run.given),
        "shards": {
            "count": len(found.shards.used),
            "new": list(found.shards.new),
            "changed": list(found.shards.changed),
            "vanished": list(found.shards.vanished),
            "left_out": dict(found.shards.left_out),
        },
        "counts": {
            "seen": run.samples.rows,
            "kept": run.verdicts[-1].total("kept"),
            "dropped": {artifact.step: artifact.totals("dropped") for artifact in later},
            "rejected": first.totals("dropped"),
        },
        "diff": found.diff.record(),
        "fitted": fitted,
        **({"profile": to_record(found.profile)} if found.profile else {}),
        "drift": [asdict(drift) for drift in found.drift],
        "warnings": [drift.sentence for drift in found.drift if drift.mark],
        "ledger": ledger_address(run.samples, run.verdicts),
    }


def drift_of(snapshot: Snapshot) -> list[Drift]:
    """The measures of a snapshot."""
    return [Drift(**drift) for drift in snapshot["drift"]]


def in_words(snapshot: Snapshot) -> str:
    """What a night did, in a line."""
    shards, diff = snapshot["shards"], snapshot["diff"]
    changes = [f"{len(shards[kind]):,} {kind} shards" for kind in ("new", "changed", "vanished") if shards[kind]]
    after = f"after {snapshot['parent']}, {snapshot['policy']}" if snapshot["parent"] else "the first"
    moved = f"{diff['added']:,} samples added, {diff['removed']:,} removed, {snapshot['counts']['kept']:,} kept"
    return f"snapshot {snapshot['id']} ({after}): {', '.join([*changes, moved])}"


def describe_drift(snapshot: Snapshot) -> list[tuple[Any, ...]]:
    """Rows of a table: measure, of, value, chance, mark."""
    return [(d.measure, d.of or "samples", d.value, d.chance, d.mark or "ok") for d in drift_of(snapshot)]
