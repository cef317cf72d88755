"""Near duplicates: how many go at other epsilons, how large their groups are, and some of these.

A group is shown by its first member, which always stays, and the samples that went because of it.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.hashing import keyed_hash
from operators.uids import split_uids
from pipeline.artifact import read_columns
from pipeline.columns import UID_TYPE
from pipeline.report.curves import Curve, Knot, draw_curves
from pipeline.report.figures import Mark
from pipeline.report.page import Bar, Bars, Block, Chart, Gallery, number, percent
from pipeline.report.scan import Column, Frame, Observation
from pipeline.report.views.base import Seen
from pipeline.report.views.verdicts import Verdicts, step_facts
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.storage import Store

_NOTE = (
    "Near pairs connect samples into groups. Below, each group is shown by its first sample, which stays, and the most "
    "similar of those that went for it."
)

_LARGEST, _DRAWN = 4, 4
"""Groups that are shown of each sort."""


class Group(NamedTuple):
    """A group of duplicates; the largest sort first.

    Attributes:
        rank: the size, negative.
        hash: of the uid; settles ties, and draws.
        uid: of its first member, in hexadecimal digits.
    """

    rank: int
    hash: int
    uid: str

    @property
    def size(self) -> int:
        """Members."""
        return -self.rank


@dataclass(frozen=True)
class Deduplicated(Verdicts):
    """What a deduplication did.

    Attributes:
        epsilon: the chosen one.
        removed: samples that go, by epsilon.
        group_sizes: how many groups have 2 to 3, 4 to 7, ... members.
        largest, drawn: groups to show.
    """

    shown: ClassVar[int] = 10

    epsilon: float
    removed: Mapping[float, int]
    group_sizes: Sequence[int]
    largest: tuple[Group, ...]
    drawn: tuple[Group, ...]

    @property
    def reads(self) -> Sequence[Column]:
        """Uids, verdicts, and what each sample is a duplicate of."""
        columns = ("kept", "detail.duplicate_of", "detail.similarity")
        return (("samples", "uid"), *((self.title, name) for name in columns))

    def observe(self, frame: Frame) -> Observation:
        """Chooses the first member of each group that is shown, and of those that went for it the most similar."""
        uids = [group.uid for group in (*self.largest, *self.drawn)]
        _, kept_N = frame.flags(self.title)
        first_N = _index_in(frame["samples", "uid"], pa.array(map(bytes.fromhex, uids), UID_TYPE))
        goes_N = _index_in(frame[self.title, "detail.duplicate_of"], pa.array(uids, pa.string()))
        similarity_N = frame.floats((self.title, "detail.similarity"))
        chosen = frame.choose([_first(uid) for uid in uids], np.where(kept_N, first_N, -1), 1)
        return Observation(choices=chosen | frame.choose(uids, goes_N, self.shown - 1, -similarity_N))

    def details(self, seen: Seen) -> Sequence[Block]:
        """The curve and the sizes of the groups."""
        note = "Samples that would go, had another epsilon been chosen."
        blocks: list[Block] = []
        if len(self.removed) > 1:
            blocks.append(removed_chart(self.removed, self.facts.rows_in, note, self.epsilon))
        if self.group_sizes:
            most = max(self.group_sizes)
            bars = tuple(
                Bar(f"{number(2 << i)} to {number((4 << i) - 1)} samples", count, count / most)
                for i, count in enumerate(self.group_sizes)
            )
            wide = len(self.removed) < 2
            blocks.append(Bars("Groups of near duplicates by size", bars, "kept", wide, ("Size", "Groups")))
        return blocks

    def dropped(self, seen: Seen) -> Sequence[Block]:
        """Groups: what stays of each, before what went for it."""
        galleries = [self._gallery(seen, group, "One of the largest groups.") for group in self.largest]
        return [*galleries, *(self._gallery(seen, group, "A group drawn at random.") for group in self.drawn)]

    def _gallery(self, seen: Seen, group: Group, note: str) -> Gallery:
        stays = [replace(shown, badge="stays", tone="kept") for shown in seen.examples(_first(group.uid), self.title)]
        goes = seen.examples(group.uid, self.title, "similarity")
        return Gallery(f"Group of {number(group.size)}", (*stays, *goes), note, wide=False)


def make_semantic_dedup(run: Run, step: Any) -> Deduplicated:
    """The view of a `semantic_dedup` step."""
    artifact = run.artifacts[step.title]
    largest, drawn = choose_groups(run, artifact.info["groups"])
    return Deduplicated(
        step_facts(run, step, _NOTE if largest else ""),
        epsilon=step.epsilon,
        removed=dict(zip(artifact.info["epsilons"], artifact.info["removed"], strict=True)),
        group_sizes=tuple(artifact.info["group_sizes"]),
        largest=largest,
        drawn=drawn,
    )


def removed_chart(removed: Mapping[float, int], rows_in: int, note: str, chosen: float | None = None) -> Chart:
    """How many samples go by epsilon.

    Args:
        removed: by epsilon, rising; not empty.
        rows_in: samples that came in.
        note: below the chart.
        chosen: the epsilon to mark.
    """
    knots = [
        Knot(epsilon, count / max(rows_in, 1), f"epsilon {epsilon:g}: {number(count)}, {percent(count, rows_in)}")
        for epsilon, count in removed.items()
    ]
    marks = () if chosen is None else (Mark(chosen, f"chosen: {chosen:g}"),)
    curves = [Curve("dropped", tuple(knots))]
    svg = draw_curves("Share of samples removed by epsilon", curves, "epsilon, 1 − cosine", scale="share", marks=marks)
    return Chart("Share removed by epsilon", svg, note)


def choose_groups(run: Run, paths: Sequence[str]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """The groups to show, the same ones for any number of workers: the largest, and some drawn at random.

    Args:
        run: the run.
        paths: of the files that `semantic_dedup` leaves about its groups.
    """
    found: list[Group] = []
    for groups in spread(partial(_candidates, run.store, run.seed), paths, workers=run.workers):
        found = _shortlist([*found, *groups])
    largest = sorted(found)[:_LARGEST]
    drawn = sorted((group for group in found if group not in largest), key=lambda group: group.hash)
    return tuple(largest), tuple(drawn[:_DRAWN])


def _candidates(store: Store, seed: int, path: str) -> list[Group]:
    """Those groups of one file that may be shown."""
    table = read_columns(store, path, ["group", "size", "uid"])
    table = table.filter(pc.equal(table["group"], table["uid"]))  # the first member stands for the group
    uids = table["uid"].to_pylist()
    hash_G = keyed_hash(*split_uids(np.frombuffer(bytes.fromhex("".join(uids)), "V16")), seed, "report")
    sizes = table["size"].to_pylist()
    return _shortlist([Group(-size, hash_, uid) for size, hash_, uid in zip(sizes, hash_G.tolist(), uids, strict=True)])


def _shortlist(groups: Sequence[Group]) -> list[Group]:
    by_hash = heapq.nsmallest(_LARGEST + _DRAWN, groups, key=lambda group: group.hash)
    return list({*heapq.nsmallest(_LARGEST, groups), *by_hash})


def _first(uid: str) -> str:
    """What the choice of a group's first member is called, beside that of the members that went."""
    return f"{uid}/first"


def _index_in(column: pa.ChunkedArray, values: pa.Array) -> NDArray[np.int64]:
    """Where each value stands among some others; -1 where it does not."""
    return np.asarray(pc.fill_null(pc.index_in(column, values), -1))
