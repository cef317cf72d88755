"""The tree of a merge: what is drawn, and the numbers in it."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from operators.hac import cut_tree, merge_tree, pair_distances
from pipeline.report.dendrogram_figure import Branch, cut_height, draw_dendrogram, top_of_tree

# Clusters 0 and 1 merge at 0.1, 2 and 3 at 0.2, the pairs at 0.5, cluster 4 joins at 1.
MERGES = np.array([[0, 1, 0.1, 2], [2, 3, 0.2, 2], [5, 6, 0.5, 4], [4, 7, 1.0, 5]])
CONCEPTS = np.array([0, 0, 1, 1, 2], np.int32)
SIZES = np.array([10, 30, 100])


def test_the_tree_by_hand():
    root = top_of_tree(MERGES, CONCEPTS, SIZES)
    first, second, last = Branch(0.2, 30, 2, 1, 1), Branch(0.1, 10, 2, 1, 0), Branch(0.0, 100, 1, 1, 2)
    assert root == Branch(1.0, 140, 5, 3, 0, (last, Branch(0.5, 40, 4, 2, 0, (first, second))))
    assert list(root.leaves()) == [last, first, second]


def test_fewer_leaves_than_concepts():
    root = top_of_tree(MERGES, CONCEPTS, SIZES, leaves=2)
    assert list(root.leaves()) == [Branch(0.0, 100, 1, 1, 2), Branch(0.5, 40, 4, 2, 0)]


def test_where_the_tree_was_cut():
    assert cut_height(MERGES, 3) == pytest.approx(0.35)
    assert cut_height(MERGES, 5) == pytest.approx(0.05)  # nothing was merged


@pytest.mark.parametrize(("clusters", "concepts", "leaves"), [(2, 2, 2), (40, 35, 30), (200, 12, 12), (31, 31, 30)])
def test_every_sample_cluster_and_concept_is_in_one_leaf(clusters, concepts, leaves):
    generator = np.random.default_rng(clusters)
    merges_M4 = merge_tree(pair_distances(generator.standard_normal((clusters, 5)), "cosine"), "average")
    concept_K = cut_tree(merges_M4, concepts).astype(np.int32)
    sizes_C = generator.integers(0, 1000, concepts)
    root = top_of_tree(merges_M4, concept_K, sizes_C)
    drawn = list(root.leaves())
    assert len(drawn) == leaves
    held = (sum(leaf.samples for leaf in drawn), sum(leaf.clusters for leaf in drawn))
    assert held == (root.samples, root.clusters) == (sizes_C.sum(), clusters)
    assert sum(leaf.concepts for leaf in drawn) == root.concepts == concepts
    assert all(leaf.height < root.height for leaf in drawn)


def test_the_drawing():
    root = top_of_tree(MERGES, CONCEPTS, SIZES)
    svg = ET.fromstring(draw_dendrogram(root, cut_height(MERGES, 3), "<distance>"))
    assert svg.get("aria-label") == "Tree of 3 concepts, merged from 5 clusters"
    texts = [text.text for text in svg.iter("text")]
    assert {"concept 2", "concept 1", "concept 0", "100", "30", "10", "3 concepts", "<distance>"} <= set(texts)
    assert [path.get("class") for path in svg.iter("path")].count("subtree") == 3
    assert [title.text for title in svg.iter("title")] == [
        "at 1: 140 samples of 5 clusters",
        "concept 2: 100 samples of 1 cluster",
        "at 0.5: 40 samples of 4 clusters",
        "concept 1: 30 samples of 2 clusters",
        "concept 0: 10 samples of 2 clusters",
    ]
    _, _, width, height = map(float, svg.get("viewBox").split())
    for line in svg.iter("line"):
        assert 0 <= float(line.get("x1")) <= float(line.get("x2")) <= width
        assert 0 <= float(line.get("y1")) <= float(line.get("y2")) <= height


def test_identical_clusters_have_a_tree_without_height():
    merges_M4 = merge_tree(np.zeros(3), "average")
    root = top_of_tree(merges_M4, np.arange(3, dtype=np.int32), np.ones(3, int))
    svg = ET.fromstring(draw_dendrogram(root, 0.0, "distance"))
    lines = list(svg.iter("line"))
    assert lines
    assert all(np.isfinite(float(line.get(key))) for line in lines for key in ("x1", "x2", "y1", "y2"))
