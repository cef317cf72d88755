"""The cost of what clusters: k-means, assigning every row, and comparing the members of clusters.

Legend: K clusters, D dimensions.
"""

import math
from collections.abc import Mapping

from pipeline.clustering import KMeansSettings
from pipeline.plan.machines import KMEANS_UTILISATION
from pipeline.plan.rehearsal import Content
from pipeline.plan.work import Inputs, Work
from pipeline.steps.semantic_dedup import SemanticDedup, row_bytes, rows_per_bin

_SKEW = 2.0
"""Mean square of the sizes of clusters over the square of their mean: members are compared in pairs, so large clusters
count for more. 1.6 and 2.2 on CIFAR-10's pixels (k = 100) and on a generated pool."""

_PREPARED = 22
"""Bytes of each coordinate of a centroid in a worker: float64, its screen, and the sums of its rows with a copy."""

_WORKING_BYTES = 250e6
"""Of a k-means worker besides its part, its imports and the centroids: tiles of scores and rechecks, by
`python -m benchmarks.kmeans_memory`; less where there are few rows."""

_ASSIGNED: Mapping[str, Content] = {"cluster": "cluster", "similarity": "number"}

_MEMBER_BYTES = 60
"""Of a row that travels to its cluster, besides its embedding: keys, unit and row numbers."""


def clusters(inputs: Inputs, title: str, model: str, settings: KMeansSettings, rows: float) -> Work:
    """Fitting, then assigning every row, then the parts of `<title>.clusters` and the fit beside them."""
    rows = max(1.0, rows)
    settings = settings.decided(round(rows))
    k, dim = min(settings.k, round(rows)), inputs.encoding(model).dim
    fitted = min(rows, k * settings.points_per_cluster) if settings.points_per_cluster else rows
    # The last pass over the rows updates nothing. A sampled fit ends with one over all rows.
    passes = settings.iterations + 1
    rounds = 1 + settings.resampling.rounds if settings.levels else 1
    steps = rounds * passes * fitted + (rows if settings.points_per_cluster else 0)
    products = steps * k * dim + _seeding(settings, fitted, k) * dim
    on_cpus = 0.0 if inputs.machines.gpus else inputs.rates.product_seconds * products
    actors = inputs.machines.gpus or inputs.actors(fitted, inputs.threads)
    slices = math.ceil(8 * k * dim / (64 * 2**20))
    asked = rounds * passes * (actors + 1) * slices
    assigning = rows * (inputs.rates.row_seconds + inputs.rates.product_seconds * k * dim)
    parts = inputs.rehearsal.attributes(f"{title}.clusters", _ASSIGNED, k)
    stored = parts.bytes.of(inputs.facts.shards, rows) + 8 * k * (dim + 2)
    embeddings = rows * inputs.encoding(model).row_bytes
    share = fitted / actors
    return Work(
        read=2 * embeddings + rows * 16 + inputs.groups() * 8 * k * dim,
        written=stored + passes * 8 * k * dim,
        stored=stored,
        shuffled=rounds * passes * actors * 16 * k * dim,
        cpu_seconds=on_cpus
        + steps * inputs.rates.row_seconds
        + assigning
        + parts.seconds.of(inputs.facts.shards, rows),
        tasks=asked + inputs.groups(),
        gpu_seconds=inputs.machines.gpu_seconds(2 * products, KMEANS_UTILISATION) if inputs.machines.gpus else 0.0,
        # Both the actors and the tasks that assign rows afterwards import torch.
        start_seconds=actors * inputs.rates.numeric.seconds + _library(inputs, min(inputs.workers, inputs.groups())),
        worker_bytes=inputs.rates.numeric.bytes
        + 1.1 * share * (2 * dim + 12 + 16)
        + min(_WORKING_BYTES, 20 * share * dim)
        + _PREPARED * k * dim,
    )


def _seeding(settings: KMeansSettings, rows: float, k: int) -> float:
    """Products of rows and candidates for the first centroids."""
    if settings.init == "kmeans++":
        return 16.0 * k * k
    if settings.init == "kmeans||":
        return 3.0 * k * (rows + k)
    return 0.0


def _library(inputs: Inputs, processes: float) -> float:
    """CPU seconds for processes that run already to import torch."""
    return processes * max(0.0, inputs.rates.numeric.seconds - inputs.rates.worker.seconds)


def compare_members(inputs: Inputs, step: SemanticDedup, rows: float) -> Work:
    """Bringing members together and comparing them, as if nothing were known of how they crowd but `_SKEW`."""
    assert step.model is not None
    dim = inputs.encoding(step.model).dim
    settings = step.kmeans.decided(round(max(1.0, rows)))
    k = max(1, min(settings.k, round(rows)))
    pairs = _SKEW * rows * rows / k / 2 * (1 + 2 * step.neighbour_clusters)
    travelling = 2 * dim + _MEMBER_BYTES
    largest = min(rows, max(_SKEW * rows / k, rows_per_bin(round(rows), dim, inputs.workers)))
    bins = max(1.0, rows / largest)
    return Work(
        read=rows * (inputs.encoding(step.model).row_bytes + 40),
        shuffled=rows * travelling,
        cpu_seconds=rows * inputs.rates.compared_seconds + pairs * dim * inputs.rates.pair_seconds,
        tasks=2 * inputs.workers + bins,
        start_seconds=_library(inputs, min(bins, inputs.workers)),
        worker_bytes=inputs.rates.numeric.bytes + largest * row_bytes(dim),
    )
