"""Pruning by prototypes: how difficult the samples of each cluster or class are, and which of them were kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow.compute as pc

from pipeline.artifact import read_columns
from pipeline.report.page import Block, Cell, Table, number, percent
from pipeline.report.page import Column as Heading
from pipeline.report.views.base import Seen
from pipeline.report.views.groups import Card, Grouped, centroid_distance, choose_cards
from pipeline.report.views.verdicts import Verdicts, step_facts
from pipeline.run import Run

TABLE_ROWS = 1000


@dataclass(frozen=True)
class Prototyped(Grouped):
    """What a pruning by prototypes did.

    Attributes:
        num_prototypes: that have samples.
        rows: of `prototypes.parquet`, by size, the largest first, `TABLE_ROWS` at most.
    """

    label: ClassVar[str] = "difficulty"

    num_prototypes: int
    rows: tuple[dict[str, Any], ...]

    def details(self, seen: Seen) -> Sequence[Block]:
        """The difficulties, the reasons where there are several, the table and the cards."""
        blocks = self.histograms(seen)
        if len(self.facts.reasons) > 1:
            blocks.append(self.reason_bars())
        return [*blocks, self._table(), *self.groups(seen)]

    def _table(self) -> Table:
        headings = (
            Heading(self.kind, numeric=self.kind == "cluster"),
            Heading("size", help="samples whose own prototype it is"),
            Heading("kept", help="samples that stayed"),
            Heading("share kept", share=True),
        )
        plural = "classes" if self.kind == "class" else "clusters"
        cut = f"The {number(len(self.rows))} largest of " if self.num_prototypes > len(self.rows) else ""
        note = f"{cut}{number(self.num_prototypes)} {plural} with samples. Press a heading to sort."
        return Table(f"Samples by {self.kind}", headings, tuple(map(self._cells, self.rows)), note)

    def _cells(self, row: dict[str, Any]) -> tuple[Cell, ...]:
        return (
            Cell(row["name"], row["prototype"] if self.kind == "cluster" else row["name"], self.link(row["prototype"])),
            Cell(f"{row['size']:,}", row["size"]),
            Cell(f"{row['kept']:,}", row["kept"]),
            Cell(percent(row["kept"], row["size"]), row["kept"] / row["size"]),
        )


def make_prototypes(run: Run, step: Any, path: str) -> Verdicts:
    """The view of a `prune` step with `method: prototypes`, whose `prototypes.parquet` is at `path`."""
    table = read_columns(run.store, path)
    table = table.filter(pc.greater(table["size"], 0)).sort_by([("size", "descending"), ("prototype", "ascending")])
    rows = tuple(table.slice(0, TABLE_ROWS).to_pylist())
    kind = "class" if step.clusters is None else "cluster"
    cards = [_card(row, row["name"] if kind == "class" else row["prototype"]) for row in rows]
    return Prototyped(
        step_facts(run, step),
        kind=kind,
        value="difficulty",
        meaning=_meaning(step),
        cards=choose_cards(cards),
        num_prototypes=table.num_rows,
        rows=rows,
    )


def _meaning(step: Any) -> str:
    match step.difficulty, step.members:
        case "distance", _ if step.clusters is None:
            return "1 − cosine of a sample to the mean of its class."
        case "distance", _:
            return centroid_distance(step.metric)
        case _, "hard":
            return "Distance of a sample to its own prototype, less those to the two nearest others."
    return "Distance of a sample to its own prototype."


def _card(row: dict[str, Any], key: int | str) -> Card:
    note = f"{row['size']:,} samples, {percent(row['kept'], row['size'])} kept"
    return Card(row["prototype"], key, row["size"], row["kept"], note)
