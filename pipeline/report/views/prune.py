"""Pruning by clusters: how dense each is, how far from the others, how much of it was kept, and what it looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow.compute as pc

from pipeline.artifact import read_columns
from pipeline.report.figures import Point, draw_scatter
from pipeline.report.page import Block, Cell, Chart, Table, number, percent
from pipeline.report.page import Column as Heading
from pipeline.report.views.base import Seen
from pipeline.report.views.groups import Card, Grouped, centroid_distance, choose_cards
from pipeline.report.views.prototypes import make_prototypes
from pipeline.report.views.verdicts import Verdicts, make_verdicts, step_facts
from pipeline.run import Run

TABLE_ROWS = 1000
_HEADINGS = (
    Heading("cluster"),
    Heading("size", help="members that came in"),
    Heading("d_intra", help="mean distance of the members to their centroid: how varied the cluster is"),
    Heading("d_inter", help="mean distance to the nearest other centroids: how far from the rest it lies"),
    Heading("density", help="what the quotas are given by; d_intra x d_inter unless set otherwise"),
    Heading("quota", help="members that were to stay"),
    Heading("kept", help="members that stayed: quotas are exact, so this is the quota"),
    Heading("share kept", share=True),
)


@dataclass(frozen=True)
class Pruned(Grouped):
    """What a pruning by clusters did.

    Attributes:
        num_clusters: that have members.
        rows: `clusters.parquet` by size, the largest first, `TABLE_ROWS` at most.
    """

    label: ClassVar[str] = "distance to the centroid"

    num_clusters: int
    rows: tuple[dict[str, Any], ...]

    def details(self, seen: Seen) -> Sequence[Block]:
        """The map of the clusters, the distances, the table and the cards."""
        if not self.rows:
            return self.histograms(seen)
        return [self._map(), *self.histograms(seen), self._table(), *self.groups(seen)]

    def _map(self) -> Chart:
        points = [
            Point(row["d_intra"], row["d_inter"], row["size"], _share(row), f"cluster {row['cluster']}, {_size(row)}")
            for row in self.rows
        ]
        svg = draw_scatter(points, "d_intra: spread inside", "d_inter: distance to neighbours")
        legend = tuple((f"share-{i}", f"{20 * i}–{20 * i + 20} %") for i in range(5))
        note = "Each circle is a cluster: its area the size, its colour the share that was kept."
        return Chart("Clusters by spread and distance", svg, note, legend)

    def _table(self) -> Table:
        cut = f"The {number(len(self.rows))} largest of " if self.num_clusters > len(self.rows) else ""
        note = f"{cut}{number(self.num_clusters)} clusters with members. Press a heading to sort."
        return Table("Clusters", _HEADINGS, tuple(map(self._cells, self.rows)), note)

    def _cells(self, row: dict[str, Any]) -> tuple[Cell, ...]:
        return (
            Cell(str(row["cluster"]), row["cluster"], self.link(row["cluster"])),
            Cell(f"{row['size']:,}", row["size"]),
            *(Cell(f"{row[name]:.4f}", row[name]) for name in ("d_intra", "d_inter", "density")),
            *[Cell(f"{row['quota']:,}", row["quota"])] * 2,  # to stay, and stayed
            Cell(percent(row["quota"], row["size"]), _share(row)),
        )


def make_prune(run: Run, step: Any) -> Verdicts:
    """The view of a `prune` step; that of any verdict step where it has neither clusters nor prototypes."""
    info = run.artifacts[step.title].info
    if "prototypes" in info:
        return make_prototypes(run, step, info["prototypes"])
    if "clusters" not in info:
        return make_verdicts(run, step)
    table = read_columns(run.store, info["clusters"])
    table = table.filter(pc.greater(table["size"], 0)).sort_by([("size", "descending"), ("cluster", "ascending")])
    rows = tuple(table.slice(0, TABLE_ROWS).to_pylist())
    cards = choose_cards([_card(row) for row in rows])
    return Pruned(
        step_facts(run, step),
        kind="cluster",
        value="distance",
        meaning=centroid_distance(step.metric),
        cards=cards,
        num_clusters=table.num_rows,
        rows=rows,
    )


def _card(row: dict[str, Any]) -> Card:
    note = f"{_size(row)}, d_intra {row['d_intra']:.4f}, d_inter {row['d_inter']:.4f}"
    return Card(row["cluster"], row["cluster"], row["size"], row["quota"], note)


def _share(row: dict[str, Any]) -> float:
    return float(row["quota"] / row["size"])


def _size(row: dict[str, Any]) -> str:
    return f"{row['size']:,} samples"
