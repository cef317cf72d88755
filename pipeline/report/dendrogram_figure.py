"""How clusters were merged, as a tree on its side: leaves to the right, the last merge to the left.

Only the top of the tree is drawn. A triangle stands for a branch that is not: it reaches from its own last merge to its
clusters.

Legend: K clusters of k-means, C concepts, M merges, L leaves that are drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from operators.hac import cut_tree
from pipeline.report.figures import WIDTH, Axis, short, svg, ticks
from pipeline.report.page import number

MOST_LEAVES = 30

_ROW, _TOP, _BOTTOM = 15, 22, 36
_LEFT, _TREE_END = 8, 300
_MOST_TICKS = 4

_BRANCH = Markup('<path class="branch" d="M{0:.1f} {1:.1f}H{2:.1f}V{3:.1f}H{4:.1f}"><title>{5}</title></path>')
_LEAF = Markup(
    "<g><title>{tip}</title>"
    '<path class="subtree" d="M{head:.1f} {y:.1f}L{end:.1f} {high:.1f}V{low:.1f}Z"/>'
    '<text x="{name_x}" y="{text_y:.1f}">{name}</text>'
    '<text x="{size_x}" y="{text_y:.1f}" text-anchor="end">{size}</text></g>'
)


@dataclass(frozen=True)
class Branch:
    """A part of the tree.

    Attributes:
        height: of its last merge; 0 for a single cluster.
        samples, clusters: that it holds.
        concepts: how many it holds.
        concept: the lowest of their ids.
        parts: the two branches merged, the larger first; empty where they are not drawn.
    """

    height: float
    samples: int
    clusters: int
    concepts: int
    concept: int
    parts: tuple["Branch", ...] = ()

    def leaves(self) -> Iterator["Branch"]:
        """Those that are drawn as triangles, from the top of the figure."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()


def top_of_tree(
    merges_M4: NDArray[np.float64], concept_K: NDArray[np.int32], sizes_C: NDArray[np.int64], leaves: int = MOST_LEAVES
) -> Branch:
    """The last merges, down to so many leaves, or to the concepts where they are fewer.

    Args:
        merges_M4: of all clusters, in scipy's form.
        concept_K: the concept of each cluster.
        sizes_C: samples of each concept.
        leaves: at most.
    """
    num_clusters, num_leaves = len(concept_K), min(leaves, len(sizes_C))
    made = num_clusters - num_leaves
    leaf_K = cut_tree(merges_M4, num_leaves)
    leaf_C = leaf_K[np.unique(concept_K, return_index=True)[1]]  # concepts are cut lower, so each lies in one leaf
    below = {
        node: _leaf(leaf, leaf_K, leaf_C, sizes_C, height) for leaf, node, height in _heads(merges_M4, leaf_K, made)
    }
    for i in range(made, num_clusters - 1):
        two = (below.pop(int(merges_M4[i, 0])), below.pop(int(merges_M4[i, 1])))
        below[num_clusters + i] = _joined(float(merges_M4[i, 2]), *sorted(two, key=lambda part: -part.samples))
    (root,) = below.values()
    return root


def cut_height(merges_M4: NDArray[np.float64], num_concepts: int) -> float:
    """Where the tree was cut: halfway between the last merge that was made and the first that was not."""
    made = len(merges_M4) + 1 - num_concepts
    return float(merges_M4[max(0, made - 1) : made + 1, 2].sum()) / 2


def draw_dendrogram(root: Branch, cut: float, label: str) -> Markup:
    """The tree; `root` has parts.

    Args:
        root: of the tree.
        cut: the height at which merging stopped.
        label: of the axis of heights.
    """
    rows = {id(leaf): _TOP + _ROW * (i + 0.5) for i, leaf in enumerate(root.leaves())}
    bottom = _TOP + _ROW * len(rows) + 4
    x = Axis(0.0, root.height or 1.0, _TREE_END, _LEFT)
    parts = [_scale(x, bottom, label), *_draw(root, x, rows)[1]]
    anchor, shift = ("start", 5) if x(cut) < WIDTH / 2 else ("end", -5)
    mark = Markup(
        '<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="4" y2="{1}"/>'
        '<text class="marked" x="{2:.1f}" y="13" text-anchor="{3}">{4} concepts</text>'
    )
    parts.append(mark.format(x(cut), bottom, x(cut) + shift, anchor, number(root.concepts)))
    described = f"Tree of {number(root.concepts)} concepts, merged from {number(root.clusters)} clusters"
    return svg(parts, described, bottom + _BOTTOM)


def _draw(branch: Branch, x: Axis, rows: dict[int, float]) -> tuple[float, list[Markup]]:
    """The middle of a branch, and its marks, the lowest branches last."""
    if not branch.parts:
        return rows[id(branch)], [_draw_leaf(branch, x, rows[id(branch)])]
    (first_y, first), (last_y, last) = (_draw(part, x, rows) for part in branch.parts)
    ends = [x(part.height) for part in branch.parts]
    line = _BRANCH.format(
        ends[0], first_y, x(branch.height), last_y, ends[1], f"at {short(branch.height)}: {_facts(branch)}"
    )
    return (first_y + last_y) / 2, [line, *first, *last]


def _draw_leaf(leaf: Branch, x: Axis, y: float) -> Markup:
    half = _ROW * 0.36
    name = f"concept {leaf.concept}" if leaf.concepts == 1 else f"{number(leaf.concepts)} concepts"
    return _LEAF.format(
        tip=f"{name}: {_facts(leaf)}",
        head=min(x(leaf.height), x.start - 3),
        end=x.start,
        y=y,
        high=y - half,
        low=y + half,
        name=name,
        size=short(leaf.samples),
        name_x=_TREE_END + 8,
        size_x=WIDTH - 4,
        text_y=y + 4,
    )


def _scale(x: Axis, bottom: float, label: str) -> Markup:
    line = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _TREE_END, bottom, bottom)
    text = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    values = [text.format(x(value), bottom + 15, x.label(value)) for value in ticks(x.low, x.high, _MOST_TICKS)]
    names = Markup('<text x="{}" y="{}">{}</text><text x="{}" y="{}" text-anchor="end">samples</text>')
    return line + Markup("").join(values) + names.format(_LEFT, bottom + 30, label, WIDTH - 4, bottom + 15)


def _facts(branch: Branch) -> str:
    clusters = "1 cluster" if branch.clusters == 1 else f"{number(branch.clusters)} clusters"
    return f"{number(branch.samples)} samples of {clusters}"


def _heads(merges_M4: NDArray[np.float64], leaf_K: NDArray[np.int64], made: int) -> Iterator[tuple[int, int, float]]:
    """Each leaf, the node of the tree at its head, and that node's height."""
    head = {int(leaf): (cluster, 0.0) for cluster, leaf in enumerate(leaf_K)}
    member = np.concatenate([leaf_K, np.empty(made, np.int64)])
    for i in range(made):
        member[len(leaf_K) + i] = member[int(merges_M4[i, 0])]
        head[int(member[len(leaf_K) + i])] = (len(leaf_K) + i, float(merges_M4[i, 2]))
    for leaf, (node, height) in head.items():
        yield leaf, node, height


def _leaf(
    leaf: int, leaf_K: NDArray[np.int64], leaf_C: NDArray[np.int64], sizes_C: NDArray[np.int64], height: float
) -> Branch:
    mine_C = np.flatnonzero(leaf_C == leaf)
    return Branch(height, int(sizes_C[mine_C].sum()), int((leaf_K == leaf).sum()), len(mine_C), int(mine_C[0]))


def _joined(height: float, *parts: Branch) -> Branch:
    samples, clusters, concepts = (
        sum(getattr(part, name) for part in parts) for name in ("samples", "clusters", "concepts")
    )
    return Branch(height, samples, clusters, concepts, min(part.concept for part in parts), parts)
