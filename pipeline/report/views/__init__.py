"""The sections of a report. To add one: a module beside these with a `View`, and a line in `make_views`.

A view looks at every shard (`observe`, in the workers) and then tells what it saw (`section`, once).
"""

from collections.abc import Sequence

from pipeline.report.views.base import View
from pipeline.report.views.filters import make_filter
from pipeline.report.views.overview import Distributions, Further, Glance
from pipeline.report.views.prune import make_prune
from pipeline.report.views.rejects import make_rejects
from pipeline.report.views.scores import Scores
from pipeline.report.views.selections import make_image_based, make_intersection
from pipeline.report.views.semantic_dedup import make_semantic_dedup
from pipeline.report.views.sweep import make_sweep
from pipeline.report.views.verdicts import make_verdicts
from pipeline.run import Run
from pipeline.steps.base import Step
from pipeline.summary import Summary

_OWN_VIEWS = {
    "filter": make_filter,
    "image_based": make_image_based,
    "intersection": make_intersection,
    "prune": make_prune,
    "semantic_dedup": make_semantic_dedup,
    "sweep": make_sweep,
}
"""Kinds of steps with more to show than their reasons."""


def make_views(run: Run, steps: Sequence[Step], summary: Summary, place: str) -> list[View]:
    """The views of a run in the workspace at `place`, in the order of the page."""
    last = next((step.title for step in reversed(steps) if step.judges), "unique_uid")
    filtered = {score for step in steps for score in step.scores()}
    views: list[View] = [Glance(last), make_rejects(summary)]
    for step in steps:
        if step.judges or step.step in _OWN_VIEWS:
            views.append(_OWN_VIEWS.get(step.step, make_verdicts)(run, step))
        elif step.title not in filtered:  # a filter shows the score that it reads
            views.append(Scores(step.title))
    return [*views, Distributions(last), Further(place)]
