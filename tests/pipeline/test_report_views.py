"""Views on shards made by hand: what they count, choose and tell."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.pool import Source
from pipeline.report.examples import Found
from pipeline.report.page import Chart, Gallery, Group, Table
from pipeline.report.scan import Frame
from pipeline.report.views.base import Seen, settings_text
from pipeline.report.views.filters import Filtered
from pipeline.report.views.groups import Card, choose_cards
from pipeline.report.views.overview import Distributions, Glance
from pipeline.report.views.prototypes import Prototyped
from pipeline.report.views.prune import Pruned
from pipeline.report.views.rejects import make_rejects
from pipeline.report.views.scores import Scores
from pipeline.report.views.verdicts import StepFacts, Verdicts
from pipeline.steps.filter import Filter
from pipeline.steps.prune.prototypes import PrototypePrune
from pipeline.steps.rules import Rules
from pipeline.summary import Summary

NONE = None
TARGET = Source(format="images", path="s3://b/t", storage={"secret": "s"})


def frame(**columns) -> Frame:
    """Columns by `artifact__column`, with `__` for the dot of a struct; the hash of a row is its number."""
    arrays = {}
    for name, values in columns.items():
        artifact, _, column = name.partition("__")
        arrays[artifact, column.replace("__", ".")] = pa.chunked_array([pa.array(values)])
    rows = len(next(iter(columns.values())))
    return Frame(0, np.arange(rows, dtype=np.uint64), arrays)


def look(view, shard: Frame) -> Seen:
    """What a view sees of one shard, every sample being found without an image."""
    rows = range(len(shard.hash_N))
    found = {(0, row): Found(f"{row:032x}", "0.tar", f"k{row}", f"caption {row}", (8, 6), {}, None) for row in rows}
    return Seen(view.observe(shard), found)


def rows_of(seen: Seen, group: str) -> list[int]:
    return [choice.row for choice in seen.observation.choices.get(group, [])]


def facts(title: str, rows_in: int, **reasons: int) -> StepFacts:
    return StepFacts(title, title.capitalize(), "", rows_in, rows_in - sum(reasons.values()), reasons)


def test_verdicts_show_each_reason():
    shard = frame(rules__reason=[NONE, "min_side", "max_aspect", "min_side", "unknown"])
    view = Verdicts(facts("rules", 5, min_side=2, max_aspect=1))
    seen = look(view, shard)
    assert rows_of(seen, "min_side") == [1, 3]
    assert rows_of(seen, "max_aspect") == [2]
    section = view.section(seen)
    assert [block.title for block in section.blocks] == [
        "Why samples were dropped",
        "Dropped: min_side",
        "Dropped: max_aspect",
    ]
    assert section.intro.startswith("5 samples came in, 2 were kept (40.0\N{NO-BREAK SPACE}%) and 3 dropped.")


def test_filter_shows_both_sides_of_the_threshold():
    shard = frame(
        f__kept=[True, True, False, False, NONE],
        f__reason=[NONE, NONE, "below_cutoff", "no_value", NONE],
        f__detail__value=[0.5, 0.9, 0.4, NONE, NONE],
    )
    view = Filtered(facts("f", 4, below_cutoff=1, no_value=1), "alignment", (0.5,))
    seen = look(view, shard)
    assert rows_of(seen, "border/kept") == [0, 1]
    assert rows_of(seen, "border/dropped") == [2]
    assert seen.histogram("value").counts_SB.sum(axis=1).tolist() == [2, 1]
    chart, border, *_ = view.section(seen).blocks
    assert isinstance(chart, Chart)
    assert "threshold 0.5" in chart.svg
    assert isinstance(border, Group)
    assert [gallery.title for gallery in border.blocks] == ["Just kept", "Just dropped"]


def test_filter_without_any_value():
    shard = frame(f__kept=[False], f__reason=["no_value"], f__detail__value=pa.array([NONE], pa.float64()))
    view = Filtered(facts("f", 1, no_value=1), "width", ())
    assert [block.title for block in view.section(look(view, shard)).blocks] == ["Dropped: no_value"]


def test_scores_show_both_ends():
    view = Scores("alignment")
    seen = look(view, frame(alignment__score=[0.1, NONE, 0.3, 0.2]))
    assert rows_of(seen, "highest") == [2, 3, 0]
    assert rows_of(seen, "lowest") == [0, 3, 2]
    assert view.section(seen).intro == "3 samples have this score. No filter reads it."
    assert view.section(look(view, frame(alignment__score=pa.array([NONE], pa.float64())))) is None


def test_prune_shows_its_clusters():
    shard = frame(
        p__kept=[True, False, True, False, NONE, True],
        p__reason=[NONE, "over_quota", NONE, "no_embedding", NONE, NONE],
        p__detail__cluster=pa.array([0, 0, 1, NONE, NONE, 7], pa.int32()),
        p__detail__distance=[0.1, 0.2, 0.3, NONE, NONE, 0.4],
    )
    clusters = tuple(
        {"cluster": i, "size": size, "d_intra": 0.1, "d_inter": 0.2, "density": 0.02, "quota": 1}
        for i, size in ((0, 2), (1, 1))
    )
    cards = tuple(Card(row["cluster"], row["cluster"], row["size"], 1, "") for row in clusters)
    view = Pruned(facts("p", 5, over_quota=1, no_embedding=1), "cluster", "distance", "", cards, 2, clusters)
    seen = look(view, shard)
    assert {group: rows_of(seen, group) for group in seen.observation.choices} == {
        "0/kept": [0],
        "0/dropped": [1],
        "1/kept": [2],
    }
    assert seen.histogram("distance").counts_SB.sum(axis=1).tolist() == [3, 1]
    assert seen.histogram("distance/0").counts_SB.sum(axis=1).tolist() == [1, 1]
    blocks = view.section(seen).blocks
    table = next(block for block in blocks if isinstance(block, Table))
    assert [cell.text for cell in table.rows[0]][:3] == ["0", "2", "0.1000"]
    assert table.rows[0][0].link == "p-cluster-0"
    first, second = (block for block in blocks if isinstance(block, Group))
    assert (first.id, first.title) == ("p-cluster-0", "Cluster 0")
    assert [block.title for block in first.blocks] == ["", "1 kept", "1 dropped"]
    assert [block.title for block in second.blocks] == ["", "1 kept"]


def test_prune_shows_the_difficulties_of_classes():
    shard = frame(
        p__kept=[True, False, True, False, NONE],
        p__reason=[NONE, "over_quota", NONE, "no_label", NONE],
        p__detail__class=["a b", "a b", "c", NONE, NONE],
        p__detail__difficulty=[-0.25, -0.5, 0.5, NONE, NONE],
    )
    rows = (
        {"prototype": 1, "name": "a b", "size": 2, "kept": 1},
        {"prototype": 0, "name": "c", "size": 1, "kept": 1},
    )
    cards = tuple(Card(row["prototype"], row["name"], row["size"], row["kept"], "") for row in rows)
    view = Prototyped(facts("p", 4, over_quota=1, no_label=1), "class", "difficulty", "", cards, 2, rows)
    seen = look(view, shard)
    assert {group: rows_of(seen, group) for group in seen.observation.choices} == {
        "1/kept": [0],
        "1/dropped": [1],
        "0/kept": [2],
    }
    chart, bars, table, first, _ = view.section(seen).blocks
    assert (chart.title, bars.title) == ("Samples by difficulty", "Why samples were dropped")
    assert [cell.text.replace("\N{NO-BREAK SPACE}", " ") for cell in table.rows[0]] == ["a b", "2", "1", "50.0 %"]
    assert table.rows[0][0].link == first.id == "p-class-1"
    assert first.title == "Class a b"


def test_the_largest_and_the_most_and_least_kept_groups_are_pictured():
    sizes = [*range(100, 60, -2), 4, 3]
    cards = [Card(i, i, size, size // 2, "") for i, size in enumerate(sizes[:-2])]
    cards += [Card(20, 20, 4, 4, ""), Card(21, 21, 3, 0, "")]
    chosen = [card.id for card in choose_cards(cards)]
    assert chosen[:13] == [*range(12), 20]
    assert chosen[18] == 21
    assert len(chosen) == len(set(chosen)) == 22


def test_glance_leaves_rejects_out():
    shard = frame(unique_uid__kept=[True, True, False, True], prune__kept=[True, False, NONE, NONE])
    seen = look(Glance("prune"), shard)
    assert (rows_of(seen, "kept"), rows_of(seen, "dropped")) == ([0], [1, 3])
    kept, dropped = Glance("prune").section(seen).blocks
    assert isinstance(kept, Gallery)
    assert (kept.tone, dropped.tone) == ("kept", "dropped")


def test_distributions_count_what_could_be_read():
    shard = frame(
        samples__width=pa.array([64, 640, NONE], pa.int32()),
        samples__height=pa.array([128, 480, NONE], pa.int32()),
        samples__caption=["ab", NONE, ""],
        prune__kept=[True, False, NONE],
    )
    view = Distributions("prune")
    sides, captions = (seen for seen in look(view, shard).observation.histograms.values())
    assert sides.counts_SB.sum(axis=1).tolist() == [1, 1]
    assert sides.edges[0] == 6.0  # 64 pixels
    assert captions.counts_SB.sum(axis=1).tolist() == [1, 0]
    assert captions.edges[0] == 1.0  # two characters


def test_a_sound_pool_has_no_section_of_rejects():
    def view(rejected, damaged):
        return make_rejects(Summary(10, 0, {}, rejected, damaged, {}, [], [], "w"))

    empty = frame(unique_uid__reason=pa.array([NONE], pa.string()))
    assert view({}, {}).section(look(view({}, {}), empty)) is None
    damaged = view({}, {"3.tar": {"reason": "truncated", "message": "ends at byte 7"}})
    (table,) = damaged.section(look(damaged, empty)).blocks
    assert [cell.value for cell in table.rows[0]][::2] == ["3.tar", "ends at byte 7"]


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Filter(step="filter", score="a", keep_fraction=0.15), "score a, keep_fraction 0.15"),
        (Rules(step="rules", languages=("en", "de"), min_side=200), "min_side 200, languages en de"),
        (
            PrototypePrune(step="prune", method="prototypes", model="raw", label="kind", target=TARGET),
            "model raw, method prototypes, label kind, target (format images, path s3://b/t)",
        ),
    ],
)
def test_settings_in_words(step, text):
    assert settings_text(step).replace("\N{NO-BREAK SPACE}", " ") == text
