"""What drift is measured by: counts of rows, scores and clusters over some shards of a run.

Of the first night these are recorded in its snapshot. A later night's new rows are counted in the same bins, and the
two are compared by `operators.drift`. Every shard is looked at once, in tasks that merge what they see, so the driver
gets a few counts from each worker and no row.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.drift import Measured, ks_distance, rate_shift, tail_bins, tail_share, total_variation
from pipeline.artifact import read_columns
from pipeline.nightly.settings import DriftSettings, Thresholds
from pipeline.report.histogram import Histogram, count_like, histogram, merge
from pipeline.run import Run
from pipeline.spread import balanced, spread
from pipeline.storage import Store

_BINS = 1024


@dataclass(frozen=True)
class Profile:
    """Counts over some shards.

    Attributes:
        seen, rejected: samples.
        values: histograms of scores, by the title of the step, and of similarities to the centroid, by that of the
            step that clusters and `.similarity`.
        clusters: int64 rows of each cluster, by the title of the step.
    """

    seen: int = 0
    rejected: int = 0
    values: Mapping[str, Histogram] = field(default_factory=dict)
    clusters: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Drift:
    """One measure of a night.

    Attributes:
        measure: as in `DriftSettings`.
        of: the title of the step whose scores or clusters they are; empty for rejects.
        value: of `operators.drift`.
        chance: what chance alone explains.
        mark: `warn` or `stop` where it is above that threshold and above chance, else empty.
        threshold: the one that it is above.
    """

    measure: str
    of: str
    value: float
    chance: float
    mark: str = ""
    threshold: float | None = None

    @property
    def sentence(self) -> str:
        """For people."""
        what = f"{self.measure} of {self.of}" if self.of else self.measure
        found = f"{what} is {self.value:.4f}, above the {self.threshold:g} of nightly.drift.{self.measure}.{self.mark}"
        return f"drift: {found}; up to {self.chance:.4f} may be chance"


def profile(run: Run, scores: Sequence[str], shards: Collection[str], like: Profile | None = None) -> Profile:
    """Counts the rows of some shards of a run whose steps are done.

    Args:
        run: the run.
        scores: titles of its score steps.
        shards: the names of the shards.
        like: the profile in whose bins values are counted; without it bins are made to fit.
    """
    chosen = [i for i, name in enumerate(run.samples.column("shard")) if name in shards]
    artifacts = {title: run.artifacts[title] for title in scores} | run.clusters
    paths = {title: artifact.column("path") for title, artifact in artifacts.items()}
    rows = run.samples.column("rows")
    looks = [({title: paths[title][i] for title in paths}, rows[i]) for i in chosen]
    sizes = {title: int(artifact.info["clusters"]) for title, artifact in run.clusters.items()}
    work = partial(_look_at_all, run.store, sizes, like)
    parts = spread(work, balanced(looks, run.workers), workers=run.workers)
    found = reduce(partial(_merge, _most_bins(like)), parts, Profile())
    kept = [part.counts["kept"] for part in run.verdicts[0].parts]
    seen = sum(rows[i] for i in chosen)
    return Profile(seen, seen - sum(kept[i] for i in chosen), found.values, found.clusters)


def measure(new: Profile, fit: Profile, settings: DriftSettings) -> list[Drift]:
    """Compares what a night brought with what was fitted on; what has no rows on one of the sides is left out."""
    found: list[tuple[str, str, Measured]] = []
    if new.seen and fit.seen:
        found.append(("reject_rate", "", rate_shift(new.rejected, new.seen, fit.rejected, fit.seen)))
    for name, bins in sorted(fit.values.items()):
        counts_B = new.values[name].counts_SB[0] if name in new.values else np.zeros(0, np.int64)
        if not (bins.total and counts_B.sum()):
            continue
        fit_B = np.pad(bins.counts_SB[0], 1)  # as new values are counted: with a bin for those beyond each end
        if title := _clustering(name):
            found.append(("pressure", title, tail_share(int(counts_B[: tail_bins(fit_B)].sum()), int(counts_B.sum()))))
        else:
            found.append(("score", name, ks_distance(counts_B, fit_B)))
    for title, fit_K in sorted(fit.clusters.items()):
        if title in new.clusters and new.clusters[title].sum() and fit_K.sum():
            found.append(("cluster_shares", title, total_variation(new.clusters[title], fit_K)))
    order = list(DriftSettings.model_fields)
    found.sort(key=lambda entry: (order.index(entry[0]), entry[1]))
    return [_marked(name, of, measured, getattr(settings, name)) for name, of, measured in found]


def to_record(found: Profile) -> dict[str, Any]:
    """A profile as JSON holds it."""
    return {
        "seen": found.seen,
        "rejected": found.rejected,
        "values": {
            name: {"exponent": bins.exponent, "first": bins.first, "counts": bins.counts_SB[0].tolist()}
            for name, bins in found.values.items()
        },
        "clusters": {title: counts_K.tolist() for title, counts_K in found.clusters.items()},
    }


def from_record(record: Mapping[str, Any]) -> Profile:
    """The profile that `to_record` wrote."""
    values = {
        name: Histogram(bins["exponent"], bins["first"], np.array([bins["counts"]], np.int64))
        for name, bins in record["values"].items()
    }
    clusters = {title: np.array(counts, np.int64) for title, counts in record["clusters"].items()}
    return Profile(record["seen"], record["rejected"], values, clusters)


def _marked(name: str, of: str, measured: Measured, thresholds: Thresholds) -> Drift:
    for mark, threshold in (("stop", thresholds.stop), ("warn", thresholds.warn)):
        if measured.exceeds(threshold):
            return Drift(name, of, *measured, mark, threshold)
    return Drift(name, of, *measured)


def _similarity(title: str) -> str:
    """What the similarities of a clustering are called; no title of a step has a dot."""
    return f"{title}.similarity"


def _clustering(name: str) -> str:
    """The title whose similarities are called so; empty for a score."""
    title, _, column = name.rpartition(".")
    return title if column == "similarity" else ""


def _look_at_all(
    store: Store, sizes: Mapping[str, int], like: Profile | None, looks: Sequence[Mapping[str, str]]
) -> Profile:
    return reduce(partial(_merge, _most_bins(like)), (_look(store, sizes, like, paths) for paths in looks))


def _look(store: Store, sizes: Mapping[str, int], like: Profile | None, paths: Mapping[str, str]) -> Profile:
    """The values and clusters of one shard: title -> where its part lies."""
    bins = like.values if like else {}
    values: dict[str, Histogram] = {}
    clusters: dict[str, NDArray[np.int64]] = {}
    for title, path in paths.items():
        if title not in sizes:
            values[title] = _count(read_columns(store, path, ["score"])["score"], bins.get(title))
            continue
        table = read_columns(store, path, ["cluster", "similarity"])
        name = _similarity(title)
        values[name] = _count(table["similarity"], bins.get(name))
        clusters[title] = np.bincount(table["cluster"].drop_null().to_numpy(), minlength=sizes[title]).astype(np.int64)
    return Profile(values=values, clusters=clusters)


def _count(column: pa.ChunkedArray, like: Histogram | None) -> Histogram:
    values_N = pc.cast(column, pa.float64()).drop_null().to_numpy()
    if like is not None and like.total:
        return count_like(values_N, like)
    return histogram(values_N, np.zeros(len(values_N), np.int64), 1, most=_BINS)


def _most_bins(like: Profile | None) -> int:
    """Of a histogram: as many as let counts in the bins of `like`, and the two beyond their ends, stay in these."""
    recorded = [bins.counts_SB.shape[1] for bins in like.values.values()] if like else []
    return max(_BINS, *(int(count) + 2 for count in recorded), 0)


def _merge(most: int, a: Profile, b: Profile) -> Profile:
    """The counts of both, in so many bins at most; associative and commutative."""
    values = {**a.values, **b.values}
    for name in a.values.keys() & b.values.keys():
        values[name] = merge(a.values[name], b.values[name], most=most)
    clusters = {**a.clusters, **b.clusters}
    for title in a.clusters.keys() & b.clusters.keys():
        clusters[title] = a.clusters[title] + b.clusters[title]
    return Profile(values=values, clusters=clusters)
