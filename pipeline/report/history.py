"""The nights of a workspace that `winnow nightly` writes, as a section of its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.curves import Curve, Knot, draw_curves
from pipeline.report.page import Block, Cell, Chart, Column, Section, Table, Tone, number
from pipeline.snapshots import Snapshot, read_history, read_snapshot, when_begun
from pipeline.storage import Store

_MEASURES = {
    "reject_rate": "Rejected: share of the new samples, less that of the first night",
    "score": "Scores: Kolmogorov-Smirnov distance to the first night",
    "cluster_shares": "Clusters: how far their shares are from those of the first night",
    "pressure": "Rows far from every cluster: share of the new ones (1 % of the first night's)",
}
_SHORT = {"reject_rate": "rejects", "score": "scores", "cluster_shares": "clusters", "pressure": "far rows"}
_MARKS = {"": "", "warn": " !", "stop": " !!"}
_MOST_DRAWN = 60


@dataclass(frozen=True)
class Night:
    """What is shown of a snapshot.

    Attributes:
        id, parent, policy: its own.
        begun: when its night began: UTC, to the minute.
        is_shown: whether the report is of it.
        shards: new ones.
        seen, kept: samples of the whole pool.
        added, removed: of the kept ones.
        drift: `(value, mark)` by measure: of several scores or clusterings the largest.
    """

    id: int
    parent: int | None
    policy: str
    begun: str
    is_shown: bool
    shards: int
    seen: int
    kept: int
    added: int
    removed: int
    drift: Mapping[str, tuple[float, str]]


def find_nights(store: Store, shown: Snapshot | None = None) -> list[Night]:
    """The nights of a workspace, the first one first; none where it is no nightly one.

    Args:
        store: the workspace.
        shown: the snapshot that the report is of; it need not be published yet. Default: the current one.
    """
    history = read_history(store)
    snapshots = [read_snapshot(store, number) for number in history.ids]
    if shown and shown["id"] not in history.ids:
        snapshots.append(shown)
    number = shown["id"] if shown else history.current
    return [_night(store, snapshot, number) for snapshot in snapshots]


def history_sections(nights: Sequence[Night]) -> list[Section]:
    """The section; none where there are no nights."""
    if not nights:
        return []
    shown = next((night.id for night in nights if night.is_shown), nights[-1].id)
    intro = (
        f"Each night that found something new left a snapshot; this report is of snapshot {shown}. New samples are "
        "compared with those of the first night, on which thresholds and clusters were fitted: ! is above the "
        "threshold that warns, and above what chance explains, !! above the one that stops."
    )
    drawn = nights[-_MOST_DRAWN:]
    blocks: list[Block] = [_table(nights)]
    if len(drawn) > 1:
        blocks.append(_growth(drawn))
    blocks += [chart for measure in _MEASURES if (chart := _drift_chart(measure, drawn))]
    return [Section("history", "History", intro, tuple(blocks))]


def _night(store: Store, snapshot: Snapshot, shown: int | None) -> Night:
    drift: dict[str, tuple[float, str]] = {}
    for found in snapshot["drift"]:
        worst = max(drift.get(found["measure"], (-1.0, "")), (found["value"], found["mark"]), key=_severity)
        drift[found["measure"]] = worst
    return Night(
        id=snapshot["id"],
        parent=snapshot["parent"],
        policy=snapshot["policy"],
        begun=when_begun(store, snapshot["id"])[:16].replace("T", " "),
        is_shown=snapshot["id"] == shown,
        shards=len(snapshot["shards"]["new"]),
        seen=snapshot["counts"]["seen"],
        kept=snapshot["counts"]["kept"],
        added=snapshot["diff"]["added"],
        removed=snapshot["diff"]["removed"],
        drift=drift,
    )


def _severity(found: tuple[float, str]) -> tuple[int, float]:
    return list(_MARKS).index(found[1]), found[0]


def _table(nights: Sequence[Night]) -> Table:
    columns = (
        Column("snapshot", help="its id; the one that this report is of is marked"),
        Column("begun", numeric=False, help="when the night began, UTC"),
        Column("policy", numeric=False, help="and the snapshot that the night went on from, where it is not the last"),
        Column("shards", help="new ones"),
        Column("seen", help="samples of the whole pool"),
        Column("added", help="kept now, and not in the snapshot before"),
        Column("removed", help="kept in the snapshot before, and not now"),
        Column("kept"),
        *(Column(_SHORT[measure], help=help) for measure, help in _MEASURES.items()),
    )
    return Table("Nights", columns, tuple(_row(night) for night in reversed(nights)))


def _row(night: Night) -> tuple[Cell, ...]:
    went_back = night.parent not in (None, night.id - 1)
    policy = f"{night.policy}, after {night.parent}" if went_back else night.policy
    counts = (night.shards, night.seen, night.added, night.removed, night.kept)
    return (
        Cell(f"{night.id} (this report)" if night.is_shown else str(night.id), night.id),
        Cell(night.begun or "-", night.begun),
        Cell(policy, policy),
        *(Cell(number(count), count) for count in counts),
        *(_drift_cell(night.drift.get(measure)) for measure in _MEASURES),
    )


def _drift_cell(found: tuple[float, str] | None) -> Cell:
    if found is None:
        return Cell("-", -1.0)
    value, mark = found
    return Cell(f"{_share(value)}{_MARKS[mark]}", value)


def _share(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _growth(nights: Sequence[Night]) -> Chart:
    legend: tuple[tuple[Tone, str], ...] = (("plain", "seen"), ("kept", "kept"))
    counts = {"seen": [night.seen for night in nights], "kept": [night.kept for night in nights]}
    curves = [
        Curve(
            tone,
            tuple(
                _knot(night, count, f"{number(count)} {what}")
                for night, count in zip(nights, counts[what], strict=True)
            ),
        )
        for tone, what in legend
    ]
    return Chart("Samples", draw_curves("Samples by night", curves, "snapshot", x_scale="linear"), legend=legend)


def _drift_chart(measure: str, nights: Sequence[Night]) -> Chart | None:
    found = [(night, night.drift[measure][0]) for night in nights if measure in night.drift]
    if len(found) < 2:
        return None
    knots = tuple(_knot(night, max(value, 0.0), _share(value)) for night, value in found)
    svg = draw_curves(_MEASURES[measure], [Curve("dropped", knots)], "snapshot", scale="share", x_scale="linear")
    return Chart(f"Drift: {_SHORT[measure]}", svg, _MEASURES[measure])


def _knot(night: Night, value: float, what: str) -> Knot:
    return Knot(night.id, value, f"snapshot {night.id}: {what}")
