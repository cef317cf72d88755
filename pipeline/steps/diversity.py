"""How diverse a step's verdicts leave a pool, next to what came in: `diversity` of a filter.

Fang et al. 2023 (arXiv 2309.17425): a filter is as good as the set that it induces, and one that is over-fitted to its
trusted set induces one of few concepts. Concepts are clusters of a model's image embeddings, fitted on what came in.

What is found goes into the info of the step's artifact, as `diversity`: `model`, `clusters`, `collapse_below`;
`before`, `at_random` (what as many as were kept would be like, drawn at random from what came in) and `after`, each
with `samples`, `entropy`, `effective` and `largest_share` (`operators.diversity`); and a sentence under `warnings`
where the effective number of clusters is below the fraction `collapse_below` of that at random.

Legend: K clusters.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.diversity import Diversity, diversity, has_collapsed, thinned_diversity
from operators.hashing import generator
from pipeline.artifact import Artifact, read_columns
from pipeline.clustering import KMeansOptions, KMeansSettings, check_init
from pipeline.columns import booleans, present
from pipeline.parts import Part
from pipeline.run import Run
from pipeline.spread import balanced, spread
from pipeline.steps.clusters import fit_of
from pipeline.storage import Store

DIVERSITY_VERSION = 2
"""Of what is found, which stands in the artifact of the filter that asked for it."""


class DiversitySettings(KMeansOptions):
    """How to measure diversity. Those of `KMeansOptions`, and these.

    Attributes:
        model: whose image embeddings are clustered.
        clusters: that serve as concepts; `auto` is the square root of the rows that enter, 50,000 at most.
        collapse_below: the share of the effective number of clusters of as many samples at random, below which a set
            counts as collapsed.
    """

    model: str
    clusters: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    collapse_below: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check_clusters(self) -> Self:
        if isinstance(self.clusters, int):
            check_init(self.init, self.clusters)
        return self

    @property
    def kmeans(self) -> KMeansSettings:
        """The settings as k-means takes them."""
        options = {name: getattr(self, name) for name in KMeansOptions.model_fields}
        return KMeansSettings(clusters=self.clusters, **options)


def measure(
    run: Run, title: str, settings: DiversitySettings, clusters: Artifact, parts: Sequence[Part]
) -> dict[str, Any]:
    """Counts, in each cluster, the rows that entered a step and those that it kept.

    Args:
        run: the run.
        title: of the step.
        settings: of the measure.
        clusters: of the rows that entered.
        parts: the step's verdicts, one a shard.

    Returns:
        `diversity` and, where there is one, `warnings`, as in the module docstring.
    """
    count = len(fit_of(run.store, clusters.info).sizes_K)
    pairs = [((theirs.path, ours.path), ours.rows) for theirs, ours in zip(clusters.parts, parts, strict=True)]
    work = partial(count_clusters, run.store, count)
    sizes_2K = np.sum(list(spread(work, balanced(pairs, run.workers), workers=run.workers)), axis=0)
    before, after = diversity(sizes_2K[0]), diversity(sizes_2K[1])
    drawn = thinned_diversity(sizes_2K[0], after.samples, generator(run.seed, title, "diversity"))
    found: dict[str, Any] = {"model": settings.model, "clusters": count, "collapse_below": settings.collapse_below}
    found |= {"before": before._asdict(), "at_random": drawn._asdict(), "after": after._asdict()}
    collapsed = has_collapsed(drawn, after, settings.collapse_below)
    return {"diversity": found} | ({"warnings": [_warning(title, settings, drawn, after)]} if collapsed else {})


def count_clusters(store: Store, num_clusters: int, parts: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    """Int64 (2, K): of some shards, the rows in each cluster, and those of them that were kept."""
    sizes_2K = np.zeros((2, num_clusters), dtype=np.int64)
    for clusters, verdicts in parts:
        cluster_N = read_columns(store, clusters, ["cluster"])["cluster"]
        kept_N = booleans(read_columns(store, verdicts, ["kept"])["kept"])[present(cluster_N)]
        member_N = cluster_N.drop_null().to_numpy()
        sizes_2K[0] += np.bincount(member_N, minlength=num_clusters)
        sizes_2K[1] += np.bincount(member_N[kept_N], minlength=num_clusters)
    return sizes_2K


def stages(found: Mapping[str, Any]) -> tuple[Diversity, Diversity, Diversity]:
    """Of what came in, of as much as was kept at random, and of what was kept; older records know no second."""
    return (
        Diversity(**found["before"]),
        Diversity(**found.get("at_random", found["before"])),
        Diversity(**found["after"]),
    )


def describe(found: Mapping[str, Any]) -> str:
    """What was found, in a sentence."""
    before, drawn, after = stages(found)
    return (
        f"Of {found['clusters']:,} clusters of {found['model']} embeddings, what came in was as diverse as "
        f"{before.effective:,.1f} of equal size, and what was kept as {after.effective:,.1f}, where as many at random "
        f"would be as {drawn.effective:,.1f}; the largest cluster held {before.largest_share:.1%} and then "
        f"{after.largest_share:.1%}."
    )


def _warning(title: str, settings: DiversitySettings, drawn: Diversity, after: Diversity) -> str:
    return (
        f"{title}: what it kept is far less diverse than as many samples at random: as {after.effective:,.1f} clusters "
        f"of equal size, where those are as {drawn.effective:,.1f} (a collapse below {settings.collapse_below:.0%}); "
        f"the largest holds {after.largest_share:.1%}, where theirs holds {drawn.largest_share:.1%}. The filter may be "
        "over-fitted."
    )
