"""A sweep: the curves to choose k, epsilon and temperature by, and their numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from operators.evenness import FiveNumbers
from pipeline.report.curves import SPREAD_LEGEND, Curve, Knot, Spread, draw_curves, draw_spreads
from pipeline.report.page import Cell, Chart, Section, Table, number, percent
from pipeline.report.page import Column as Heading
from pipeline.report.views.base import Seen, View, settings_text
from pipeline.report.views.semantic_dedup import removed_chart
from pipeline.run import Run
from pipeline.steps.base import Step

Numbers = Mapping[str, Any]

_EFFECTIVE = "How many clusters of equal weight would be as diverse (exp of the entropy)"
_K, _TEMPERATURE = "k, number of clusters", "temperature"
_QUANTILES = ("smallest", "25\N{NO-BREAK SPACE}%", "median", "75\N{NO-BREAK SPACE}%", "largest")


@dataclass(frozen=True)
class Swept(View):
    """What a sweep measured.

    Attributes:
        title: of the step.
        heading: for people.
        settings: in words.
        numbers: as `pipeline.steps.sweep` describes them.
    """

    title: str
    heading: str
    settings: str
    numbers: Numbers

    def section(self, seen: Seen) -> Section | None:
        """The charts, then the tables."""
        rows, clusters = self.numbers["rows"], self.numbers["clusters"]
        charts, tables = cluster_charts(clusters), [cluster_table(clusters)]
        if curve := self.numbers["epsilons"]:
            removed = {point["epsilon"]: point["removed"] for point in curve["points"]}
            note = f"What semantic_dedup would remove with {number(curve['k'])} clusters."
            charts.append(removed_chart(removed, rows, note))
            tables.append(removed_table(curve["points"]))
        if curve := self.numbers["temperatures"]:
            before = next(point["effective"] for point in clusters if point["k"] == curve["k"])
            charts += quota_charts(curve, before)
            tables.append(quota_table(curve["points"]))
        intro = f"Measured on the {number(rows)} samples that came in; nothing was dropped."
        if self.settings:
            intro += f" Settings: {self.settings}."
        return Section(f"step-{self.title}", self.heading, intro, (*charts, *tables), label=self.title)


def make_sweep(run: Run, step: Step) -> Swept:
    """The view of a `sweep` step."""
    heading = "What to choose" if step.title == step.step else f"What to choose: {step.title}"
    return Swept(step.title, heading, settings_text(step), run.artifacts[step.title].info)


def cluster_charts(points: Sequence[Numbers]) -> list[Chart]:
    """Inertia, sizes and evenness by the number of clusters."""
    inertia = [Knot(p["k"], p["inertia"], f"k {p['k']:,}: {p['inertia']:.4f}") for p in points]
    sizes = [Spread(p["k"], FiveNumbers(**p["sizes"]), f"k {p['k']:,}: {_five(p['sizes'], number)}") for p in points]
    effective = [Knot(p["k"], p["effective"], f"k {p['k']:,}: {p['effective']:,.1f}") for p in points]
    even = [Knot(p["k"], p["k"]) for p in points]
    return [
        Chart(
            "Inertia by k",
            draw_curves("Inertia by number of clusters", [Curve("kept", tuple(inertia))], _K),
            "Mean of 1 − similarity of a sample to its centroid. Where the curve flattens, more clusters gain little.",
        ),
        Chart(
            "Sizes of clusters by k",
            draw_spreads("Members of a cluster by number of clusters", sizes, _K, scale="log"),
            "Members of each cluster that has any.",
            SPREAD_LEGEND,
        ),
        Chart(
            "Effective number of clusters by k",
            draw_curves(
                "Effective number of clusters by number of clusters",
                [Curve("plain", tuple(even)), Curve("kept", tuple(effective))],
                _K,
            ),
            f"{_EFFECTIVE}. Far below the dashed line, a few large clusters hold most samples.",
            (("kept", "effective number"), ("plain", "if all had one size")),
        ),
    ]


def quota_charts(curve: Numbers, before: float) -> list[Chart]:
    """The spread of quotas by temperature.

    Args:
        curve: the numbers.
        before: the effective number of the clusters that the quotas are given to.
    """
    points = [(p, f"temperature {number(p['temperature'])}") for p in curve["points"]]
    shares = [
        Spread(p["temperature"], FiveNumbers(**p["kept_share"]), f"{name}: {_five(p['kept_share'], _percent)}")
        for p, name in points
    ]
    effective = [Knot(p["temperature"], p["effective"], f"{name}: {p['effective']:,.1f}") for p, name in points]
    same = [Knot(p["temperature"], before) for p, _ in points]
    return [
        Chart(
            "Share kept of a cluster by temperature",
            draw_spreads("Share kept of a cluster by temperature", shares, _TEMPERATURE, scale="share"),
            f"What prune would keep of each of {number(curve['k'])} clusters, {number(curve['keep'])} samples in all. "
            "High temperatures give them equal quotas; very low ones take the densest whole and treat the rest alike.",
            SPREAD_LEGEND,
        ),
        Chart(
            "Effective number of clusters by temperature",
            draw_curves(
                "Effective number of clusters among what is kept, by temperature",
                [Curve("plain", tuple(same)), Curve("kept", tuple(effective))],
                _TEMPERATURE,
            ),
            f"{_EFFECTIVE}, among what is kept.",
            (("kept", "among what is kept"), ("plain", "among all")),
        ),
    ]


def cluster_table(points: Sequence[Numbers]) -> Table:
    """The numbers of each clustering."""
    columns = (
        Heading("k"),
        Heading("inertia", help="mean of 1 - similarity to the own centroid"),
        *(Heading(name, help="members of a cluster, among those that have any") for name in _QUANTILES),
        Heading("effective", help=_EFFECTIVE),
        Heading("in largest", help="share of the samples in the largest cluster"),
        Heading("empty", help="clusters without members"),
    )
    rows = [
        (
            _count(p["k"]),
            Cell(f"{p['inertia']:.4f}", p["inertia"]),
            *(_count(p["sizes"][name]) for name in FiveNumbers._fields),
            Cell(f"{p['effective']:,.1f}", p["effective"]),
            _share(p["largest_share"]),
            _count(p["empty"]),
        )
        for p in points
    ]
    return Table("Clusters by k", columns, tuple(rows))


def removed_table(points: Sequence[Numbers]) -> Table:
    """The numbers of each epsilon."""
    columns = (Heading("epsilon"), Heading("removed"), Heading("share removed", share=True))
    rows = [(Cell(number(p["epsilon"]), p["epsilon"]), _count(p["removed"]), _share(p["share"])) for p in points]
    return Table("Duplicates by epsilon", columns, tuple(rows))


def quota_table(points: Sequence[Numbers]) -> Table:
    """The numbers of each temperature."""
    columns = (
        Heading("temperature"),
        *(Heading(name, help="share kept of a cluster") for name in _QUANTILES),
        Heading("effective", help=_EFFECTIVE),
        Heading("at the floor", help="clusters that keep the least that is allowed, and have more members"),
        Heading("whole", help="clusters of which every member stays"),
    )
    rows = [
        (
            Cell(number(p["temperature"]), p["temperature"]),
            *(_share(p["kept_share"][name]) for name in FiveNumbers._fields),
            Cell(f"{p['effective']:,.1f}", p["effective"]),
            _count(p["at_floor"]),
            _count(p["whole"]),
        )
        for p in points
    ]
    return Table("Quotas by temperature", columns, tuple(rows))


def _five(numbers: Numbers, text: Callable[[float], str]) -> str:
    least, q1, median, q3, most = (text(numbers[name]) for name in FiveNumbers._fields)
    return f"median {median}, half from {q1} to {q3}, all from {least} to {most}"


def _percent(share: float) -> str:
    return percent(share, 1)


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def _share(value: float) -> Cell:
    return Cell(_percent(value), value)
