"""Pruning by clusters: how dense each is, how far from the others, how much of it was kept, and what it looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifact import read_columns
from pipeline.report.figures import FATES, Point, draw_histogram, draw_scatter
from pipeline.report.histogram import histogram
from pipeline.report.page import Block, Cell, Chart, Gallery, Group, Table, number, percent
from pipeline.report.page import Column as Heading
from pipeline.report.scan import Column, Frame, Observation
from pipeline.report.views.base import Seen
from pipeline.report.views.verdicts import Verdicts, make_verdicts, step_facts
from pipeline.run import Run
from pipeline.steps.base import Step

TABLE_ROWS = 1000
_LARGEST, _EXTREME = 12, 6
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
class Pruned(Verdicts):
    """What a pruning by clusters did.

    Attributes:
        num_clusters: that have members.
        rows: `clusters.parquet` by size, the largest first, `TABLE_ROWS` at most.
        pictured: ids of the clusters with galleries, in order.
    """

    shown: ClassVar[int] = 10

    num_clusters: int
    rows: tuple[dict[str, Any], ...]
    pictured: tuple[int, ...]

    @property
    def reads(self) -> Sequence[Column]:
        """Verdicts, reasons, clusters and distances."""
        return (
            *super().reads,
            *((self.title, name) for name in ("kept", "detail.cluster", "detail.distance")),
        )

    def observe(self, frame: Frame) -> Observation:
        """Counts the distances to the centroids; chooses kept and dropped members of the pictured clusters."""
        entered_N, kept_N = frame.flags(self.title)
        distance_N = frame.floats((self.title, "detail.distance"))
        fate_N = (~kept_N).astype(np.int64)
        has_N = entered_N & np.isfinite(distance_N)
        at = pc.index_in(frame[self.title, "detail.cluster"], pa.array(self.pictured, pa.int32()))
        at_N = pc.fill_null(at, -1).to_numpy()
        names = [f"{cluster}/{fate}" for cluster in self.pictured for _, fate in FATES]
        chosen = frame.choose(names, np.where(at_N >= 0, 2 * at_N + fate_N, -1), self.shown)
        return Observation({"distance": histogram(distance_N[has_N], fate_N[has_N], 2)}, chosen)

    def details(self, seen: Seen) -> Sequence[Block]:
        """The map of the clusters, the distances, the table and the galleries."""
        blocks: list[Block] = [self._map()] if self.rows else []
        if counts := seen.histogram("distance"):
            chart = draw_histogram(counts, FATES, "distance to the centroid")
            note = "1 − cosine of a sample to the centroid of its cluster."
            blocks.append(Chart("Samples by distance", chart, note, FATES))
        return [*blocks, self._table(), *self._galleries(seen)] if self.rows else blocks

    def dropped(self, seen: Seen) -> Sequence[Block]:
        """The galleries of the clusters show what was dropped."""
        return ()

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
        link = self._id(row["cluster"]) if row["cluster"] in self.pictured else ""
        return (
            Cell(str(row["cluster"]), row["cluster"], link),
            Cell(f"{row['size']:,}", row["size"]),
            *(Cell(f"{row[name]:.4f}", row[name]) for name in ("d_intra", "d_inter", "density")),
            *[Cell(f"{row['quota']:,}", row["quota"])] * 2,  # to stay, and stayed
            Cell(percent(row["quota"], row["size"]), _share(row)),
        )

    def _galleries(self, seen: Seen) -> list[Group]:
        by_id = {row["cluster"]: row for row in self.rows}
        groups = []
        for cluster in self.pictured:
            row = by_id[cluster]
            counts = (row["quota"], row["size"] - row["quota"])
            galleries = [
                Gallery(f"{number(count)} {name}", examples, tone=tone)
                for (tone, name), count in zip(FATES, counts, strict=True)
                if (examples := seen.examples(f"{cluster}/{name}", self.title, "distance"))
            ]
            note = f"{_size(row)}, d_intra {row['d_intra']:.4f}, d_inter {row['d_inter']:.4f}"
            groups.append(Group(self._id(cluster), f"Cluster {cluster}", note, tuple(galleries)))
        return groups

    def _id(self, cluster: int) -> str:
        return f"{self.title}-cluster-{cluster}"


def make_prune(run: Run, step: Step) -> Verdicts:
    """The view of a `prune` step; that of any verdict step where it has no clusters."""
    path = run.artifacts[step.title].info.get("clusters")
    if path is None:
        return make_verdicts(run, step)
    table = read_columns(run.store, path)
    table = table.filter(pc.greater(table["size"], 0)).sort_by([("size", "descending"), ("cluster", "ascending")])
    rows = tuple(table.slice(0, TABLE_ROWS).to_pylist())
    return Pruned(step_facts(run, step), num_clusters=table.num_rows, rows=rows, pictured=choose_clusters(rows))


def choose_clusters(rows: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """The clusters to picture: the largest, then those of which most was kept, then those of which least was."""
    by_share = sorted(rows, key=lambda row: (_share(row), -row["size"]))
    chosen = [*rows[:_LARGEST]]
    for ranked in (by_share[::-1], by_share):
        chosen += [row for row in ranked if row not in chosen][:_EXTREME]
    return tuple(row["cluster"] for row in chosen)


def _share(row: dict[str, Any]) -> float:
    return float(row["quota"] / row["size"])


def _size(row: dict[str, Any]) -> str:
    return f"{row['size']:,} samples"
