"""Selections by a reference set, and intersections: what decided, in a sentence and a few bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pipeline.artifact import read_columns
from pipeline.report.page import Bar, Bars, Block, number, percent
from pipeline.report.views.base import Seen
from pipeline.report.views.verdicts import Verdicts, step_facts
from pipeline.run import Run

_CLUSTERS = 12


@dataclass(frozen=True)
class Selected(Verdicts):
    """What a selection did, with bars of its own before those of the reasons."""

    bars: Bars

    def details(self, seen: Seen) -> Sequence[Block]:
        """The bars."""
        return [self.bars, *super().details(seen)]


def make_image_based(run: Run, step: Any) -> Selected:
    """The view of an `image_based` step: the clusters that most of the reference set falls into."""
    info = run.artifacts[step.title].info
    clusters = read_columns(run.store, info["clusters"])
    kept = int(pc.sum(pc.greater_equal(clusters["references"], step.min_references)).as_py())
    note = (
        f"{number(kept)} of {number(clusters.num_rows)} clusters stay: those whose centroid is the nearest one to at "
        f"least {number(step.min_references)} of {number(info['references'])} reference images."
    )
    top = clusters.sort_by([("references", "descending"), ("cluster", "ascending")]).slice(0, _CLUSTERS).to_pylist()
    bars = [
        Bar(
            f"cluster {row['cluster']}",
            row["references"],
            row["references"] / top[0]["references"],
            f"{number(row['size'])} samples came in",
        )
        for row in top
    ]
    return Selected(
        step_facts(run, step, note), Bars("Reference images by cluster, the most frequent", tuple(bars), "kept")
    )


def make_intersection(run: Run, step: Any) -> Selected:
    """The view of an `intersection`: what each of its steps would have kept alone."""
    facts = step_facts(run, step)
    alone = run.artifacts[step.title].info["alone"]
    counts = {**{inner.title: alone[inner.title] for inner in step.of}, "all of them": facts.rows_out}
    bars = [
        Bar(name, kept, kept / max(facts.rows_in, 1), f"{percent(kept, facts.rows_in)} of what came in")
        for name, kept in counts.items()
    ]
    return Selected(facts, Bars("Kept by each alone", tuple(bars), "kept"))
