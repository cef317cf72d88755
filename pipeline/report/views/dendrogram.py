"""The tree of a merge, for the section of any step that clusters and says in its info which `fit` it used."""

from pipeline.report.dendrogram_figure import cut_height, draw_dendrogram, top_of_tree
from pipeline.report.page import Chart, number
from pipeline.run import Run
from pipeline.steps.base import Step
from pipeline.steps.clustered import Clustered
from pipeline.steps.clusters import fit_of


def merge_charts(run: Run, step: Step) -> tuple[Chart, ...]:
    """The tree, where the step merged clusters into two concepts or more."""
    info = run.artifacts[step.title].info
    if not isinstance(step, Clustered) or step.merge is None or "fit" not in info:
        return ()
    fit = fit_of(run.store, info)
    if fit.merged is None or len(fit.sizes_K) < 2:
        return ()
    root = top_of_tree(fit.merged.merges_M4, fit.merged.concept_K, fit.sizes_K)
    linkage = step.merge.linkage
    label = "Ward's distance" if linkage == "ward" else f"distance (1 − cosine), {linkage} linkage"
    shown = sum(1 for _ in root.leaves())
    part = f" The top {number(shown)} branches are drawn." if shown < root.concepts else ""
    note = (
        f"{number(root.clusters)} clusters of k-means were merged into {number(root.concepts)} concepts, the nearest "
        f"first, from right to left.{part} A triangle holds what was merged below it."
    )
    return (Chart("Concepts", draw_dendrogram(root, cut_height(fit.merged.merges_M4, root.concepts), label), note),)
