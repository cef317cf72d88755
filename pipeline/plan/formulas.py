"""What each kind of step costs: one formula a kind, found by `FORMULAS`. A method of `prune` is a kind of its own.

A formula gets the inputs of the plan, the step and the number of rows that enter, and writes specimens of the step's
parts into the rehearsal, where they are the entering rows of the steps after it. Where only the run can tell how many
rows go on, `Work.kept` is None and the rehearsal lets all of them pass.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from operators.selection import num_kept
from pipeline.listing import list_shards
from pipeline.plan.clusters import clusters, compare_members
from pipeline.plan.rehearsal import Content, Rehearsed, decided_at_random
from pipeline.plan.work import MANIFEST_BYTES, Inputs, Work
from pipeline.pool import Pool, Source
from pipeline.shuffle import ROWS_PER_PARTITION
from pipeline.steps import rules, unique_uid
from pipeline.steps.base import Step
from pipeline.units import Judge

Formula = Callable[[Inputs, Any, float], Work]
Details = Mapping[str, Content]

_KEY_BYTES = 28
"""Of a row among the keys that an actor holds (`pipeline.selection`), half as much again at the worst."""
_TEMPORARY_BYTES = 100e6
_LEDGER_ROW_BYTES = 500
"""Of a row of the ledger in a task, uncompressed and with its copies."""

_RANKED: Details = {"value": "number", "threshold": "constant"}
_BY_CLUSTER: Details = {
    "cluster": "cluster",
    "distance": "number",
    "quota": "of its cluster",
    "threshold": "of its cluster",
}


def unique(inputs: Inputs, rows: float) -> Work:
    """`unique_uid`, which every run begins with: the real judge, and a shuffle where uids were supplied."""
    columns = {"uid": "uid", "shard": "shard", "row": "row", "reason": "reason"}
    rehearsed = inputs.rehearsal.verdicts("unique_uid", partial(unique_uid.judge, None), columns)
    work = _parts(inputs, rehearsed, rows).keeping(1 - inputs.facts.reject_fraction)
    return _find_repeats(inputs, rows) + work if inputs.facts.supplies_uids else work


def ledger(inputs: Inputs, rows: float) -> Work:
    """The ledger, after the last step of the rehearsal: a shuffle, and Parquet files by uid."""
    rehearsed = inputs.rehearsal.ledger()
    files = 16 ** max(1, len(f"{int(rows) // 1_000_000:x}"))
    stored = rehearsed.bytes.of(files, rows)
    partition = min(rows, ROWS_PER_PARTITION)
    return Work(
        read=rows * 60,
        written=stored,
        stored=stored,
        shuffled=rows * _LEDGER_ROW_BYTES / 2,
        cpu_seconds=rehearsed.seconds.of(inputs.facts.shards, rows),
        tasks=2 * inputs.workers + files,
        worker_bytes=inputs.rates.worker.bytes + partition * _LEDGER_ROW_BYTES,
    )


def _judged(kept: float | None, details: Details | None = None) -> Formula:
    """A kind whose parts are all that it costs."""

    def formula(inputs: Inputs, step: Step, rows: float) -> Work:
        return _verdicts(inputs, step.title, rows, kept, details or {})

    return formula


def _rules(inputs: Inputs, step: Any, rows: float) -> Work:
    columns = {name: name for name in ("width", "height", "caption")}
    return _verdicts_of(inputs, step.title, partial(rules.judge, step), columns, rows)


def _exact_dedup(inputs: Inputs, step: Step, rows: float) -> Work:
    return _find_repeats(inputs, rows) + _verdicts(inputs, step.title, rows, None, {"duplicate_of": "uid of few"})


def _score(inputs: Inputs, step: Any, rows: float) -> Work:
    both = [inputs.encoding(step.model, modality) for modality in ("image", "text")]
    work = _attributes(inputs, step.title, rows, {"score": "number"})
    # A product of two stored rows, in float64.
    seconds = rows * both[0].dim * 4e-9
    return work + Work(read=rows * sum(encoding.row_bytes for encoding in both), cpu_seconds=seconds)


def _filter(inputs: Inputs, step: Any, rows: float) -> Work:
    kept = _share(step, rows)
    ranked = kept is not None and step.estimate_on is None
    work = _rank(inputs, rows) if ranked else Work()
    if step.diversity:
        name = f"{step.title}.diversity"
        work += clusters(inputs, name, step.diversity.model, step.diversity.kmeans, rows)
    return work + _verdicts(inputs, step.title, rows, kept, _RANKED)


def _semantic_dedup(inputs: Inputs, step: Any, rows: float) -> Work:
    work = clusters(inputs, step.title, step.model, step.kmeans, rows) + compare_members(inputs, step, rows)
    details: Details = {"duplicate_of": "uid of few", "similarity": "uid of few", "group_size": "uid of few"}
    return work + _verdicts(inputs, step.title, rows, None, details)


def _sweep(inputs: Inputs, step: Any, rows: float) -> Work:
    from pipeline.clustering import KMeansOptions, KMeansSettings
    from pipeline.steps.semantic_dedup import SemanticDedup

    options = {name: getattr(step, name) for name in KMeansOptions.model_fields}
    work = Work()
    for k in step.clusters:
        work += clusters(inputs, f"{step.title}.k{k}", step.model, KMeansSettings(clusters=k, **options), rows)
    largest = step.dedup_clusters or max(step.clusters)
    dedup = SemanticDedup(
        step="semantic_dedup",
        model=step.model,
        clusters=largest,
        epsilon=max(step.epsilons),
        neighbour_clusters=step.neighbour_clusters,
    )
    return work + compare_members(inputs, dedup, rows) + _attributes(inputs, step.title, rows, {"k": "cluster"})


def _decontaminate(inputs: Inputs, step: Any, rows: float) -> Work:
    reference, others = _reference(inputs, step.against, [(step.model, "image")])
    encoding = inputs.encoding(step.model)
    seconds = rows * (inputs.rates.row_seconds + inputs.rates.product_seconds * others * encoding.dim)
    compared = Work(
        read=rows * encoding.row_bytes,
        cpu_seconds=seconds,
        worker_bytes=inputs.rates.numeric.bytes + others * encoding.dim * 12,
    )
    return reference + compared + _verdicts(inputs, step.title, rows, None, {"similarity": "number"})


def _image_based(inputs: Inputs, step: Any, rows: float) -> Work:
    work = clusters(inputs, step.title, step.model, step.kmeans, rows)
    work += _reference(inputs, step.reference, [(step.model, "image")])[0]
    details: Details = {"cluster": "cluster", "references": "of its cluster"}
    return work + _verdicts(inputs, step.title, rows, None, details)


def _intersection(inputs: Inputs, step: Any, rows: float) -> Work:
    """All judge the rows that entered: each is costed by itself, then the rehearsal goes on from where it was."""
    work, least = Work(), 1.0
    for inner in step.of:
        before = inputs.rehearsal.state()
        one = cost(inputs, inner.model_copy(update={"name": f"{step.title}.{inner.title}"}), rows)
        inputs.rehearsal.restore(before)
        work += one
        least = min(least, 1.0 if one.kept is None else one.kept)
    details: Details = {inner.title: "number" for inner in step.of}
    return work + _verdicts(inputs, step.title, rows, least, details).keeping(None)


def _learned(inputs: Inputs, step: Any, rows: float) -> Work:
    """Filters that are trained in a step: the reference set, the training, and a forward pass for each row."""
    work, trusted = Work(), 0.0
    if step.trusted:
        work, trusted = _reference(inputs, step.trusted, list(step.embeddings()))
    train, each = _NETWORKS[step.step](inputs, step, trusted)
    if step.looks_at_images:
        work += Work(
            read=inputs.facts.bytes,
            cpu_seconds=rows * (inputs.facts.read_seconds + inputs.facts.decode_seconds),
        )
    work += Work(
        cpu_seconds=(train if step.trusted else 0.0) + rows * each,
        start_seconds=inputs.workers * max(0.0, inputs.rates.numeric.seconds - inputs.rates.worker.seconds),
        worker_bytes=inputs.rates.numeric.bytes,
    )
    return work + _attributes(inputs, step.title, rows, {"score": "number"})


def _prune_by_cluster(inputs: Inputs, step: Any, rows: float) -> Work:
    settings = step.kmeans.decided(round(max(1.0, rows)))
    dim = inputs.encoding(step.model).dim
    work = clusters(inputs, step.title, step.model, step.kmeans, rows)
    # The driver compares all centroids with each other.
    work += Work(cpu_seconds=settings.k * settings.k * dim * inputs.rates.product_seconds)
    work += _rank(inputs, rows)
    return work + _verdicts(inputs, step.title, rows, _share(step, rows), _BY_CLUSTER, settings.k)


def _prune_prototypes(inputs: Inputs, step: Any, rows: float) -> Work:
    work, k, dim = Work(), 1000, inputs.encoding(step.model).dim
    if step.target:
        reference, count = _reference(inputs, [step.target], [(step.model, "image")])
        work += reference
    if step.clusters is not None:
        k = step.kmeans.decided(round(max(1.0, count if step.target else rows))).k
        work += clusters(inputs, step.title, step.model, step.kmeans, count if step.target else rows)
    distances: Details = {"prototype": "cluster", "group": "constant", "distance": "number"}
    measured = _attributes(inputs, f"{step.title}.distances", rows, distances, k)
    others = k if step.difficulty == "margin" else 1
    measured += Work(cpu_seconds=rows * others * dim * inputs.rates.product_seconds * 4)
    return work + measured + _rank(inputs, rows) + _verdicts(inputs, step.title, rows, _share(step, rows), _BY_CLUSTER)


def _prune_random(inputs: Inputs, step: Any, rows: float) -> Work:
    details: Details = {"draw": "number", "threshold": "constant"}
    return _rank(inputs, rows) + _verdicts(inputs, step.title, rows, _share(step, rows), details)


FORMULAS: Mapping[str, Formula] = {
    "rules": _rules,
    "deny": _judged(None, {"match": "uid of few"}),
    "exact_dedup": _exact_dedup,
    "semantic_dedup": _semantic_dedup,
    "sweep": _sweep,
    "decontaminate": _decontaminate,
    "score": _score,
    "binary_embeddings": _learned,
    "binary_images": _learned,
    "masked_autoencoder": _learned,
    "filter": _filter,
    "image_based": _image_based,
    "prune.dbp": _prune_by_cluster,
    "prune.cluster_balanced": _prune_by_cluster,
    "prune.cluster_proportional": _prune_by_cluster,
    "prune.hierarchical": _prune_by_cluster,
    "prune.prototypes": _prune_prototypes,
    "prune.random": _prune_random,
    "intersection": _intersection,
    "python": _judged(None),
}
"""By kind. What a user's own function costs (`python`) is its own matter: only its parts are counted."""


def kind_of(step: Step) -> str:
    """The key of a step in `FORMULAS`."""
    method = getattr(step, "method", None)
    return f"{step.step}.{method}" if method else step.step


def cost(inputs: Inputs, step: Step, rows: float) -> Work:
    """The work of a step that so many rows enter."""
    return FORMULAS[kind_of(step)](inputs, step, rows)


def _parts(inputs: Inputs, rehearsed: Rehearsed, rows: float) -> Work:
    """Writing the parts of a step."""
    stored = rehearsed.bytes.of(inputs.facts.shards, rows) + MANIFEST_BYTES
    seconds = rehearsed.seconds.of(inputs.facts.shards, rows)
    memory = inputs.rates.worker.bytes + 200 * inputs.facts.rows_per_shard
    return Work(
        read=rows * 40,
        written=stored,
        stored=stored,
        cpu_seconds=seconds,
        tasks=inputs.groups(),
        worker_bytes=memory,
    )


def _verdicts(
    inputs: Inputs, title: str, rows: float, kept: float | None, details: Details, num_clusters: int = 1
) -> Work:
    """Parts of verdicts that keep a share at random."""
    judge = decided_at_random(1.0 if kept is None else kept, "not_kept", details, num_clusters)
    return _verdicts_of(inputs, title, judge, {"uid": "uid"}, rows).keeping(kept)


def _verdicts_of(inputs: Inputs, title: str, judge: Judge, columns: Mapping[str, str], rows: float) -> Work:
    rehearsed = inputs.rehearsal.verdicts(title, judge, columns)
    return _parts(inputs, rehearsed, rows).keeping(rehearsed.kept)


def _attributes(inputs: Inputs, title: str, rows: float, contents: Details, num_clusters: int = 1) -> Work:
    return _parts(inputs, inputs.rehearsal.attributes(title, contents, num_clusters), rows)


def _share(step: Any, rows: float) -> float | None:
    """The share that a step is set to keep; None where that follows from the values."""
    if step.keep_fraction is not None:
        return num_kept(step.keep_fraction, round(rows)) / max(1, round(rows))
    return None if step.keep is None else min(1.0, step.keep / max(1.0, rows))


def _rank(inputs: Inputs, rows: float) -> Work:
    """Cut-offs by counting: actors hold a key of each row."""
    actors = inputs.actors(rows)
    reading = inputs.rehearsal.samples.seconds.row  # of the same order as writing them
    return Work(
        read=rows * 24,
        cpu_seconds=rows * (inputs.rates.rank_seconds + reading / 2),
        tasks=10 * actors,
        start_seconds=actors * inputs.rates.worker.seconds,
        worker_bytes=inputs.rates.worker.bytes + 1.5 * _KEY_BYTES * rows / actors + min(_TEMPORARY_BYTES, 50 * rows),
    )


def _find_repeats(inputs: Inputs, rows: float) -> Work:
    """Sixteen bytes of each row and where it comes from, brought together by their value and sorted."""
    row, partition = 48, min(rows, ROWS_PER_PARTITION)
    return Work(
        read=rows * 40,
        shuffled=rows * row,
        cpu_seconds=rows * inputs.rates.repeat_seconds,
        tasks=2 * inputs.workers,
        worker_bytes=inputs.rates.worker.bytes + 3 * row * partition,
    )


def _reference(inputs: Inputs, sources: Sequence[Source], needs: Sequence[tuple[str, Any]]) -> tuple[Work, float]:
    """Reading and embedding another set, and how many samples it has if they are as large as the pool's."""
    shards = list_shards(Pool(sources=tuple(sources)))
    total = sum(shard.size for shard in shards)
    rows = total * inputs.facts.samples / max(1, inputs.facts.bytes)
    work = Work(
        read=total,
        stored=inputs.rehearsal.samples.bytes.of(len(shards), rows),
        cpu_seconds=rows * (inputs.facts.read_seconds + inputs.facts.decode_seconds),
    )
    for model, modality in needs:
        encoding = inputs.encoding(model, modality)
        work += Work(
            stored=rows * encoding.row_bytes,
            cpu_seconds=0.0 if encoding.gpu_seconds else rows * encoding.cpu_seconds,
            gpu_seconds=rows * encoding.gpu_seconds,
            start_seconds=inputs.workers * encoding.start.seconds if encoding.start else 0.0,
        )
    return work, rows


def _logistic(inputs: Inputs, step: Any, trusted: float) -> tuple[float, float]:
    """A hundred passes of two products over the training rows."""
    dim = sum(inputs.encoding(model, modality).dim for model, modality in step.embeddings())
    train = 100 * 2 * 2 * trusted * dim * inputs.rates.product_seconds
    return train, dim * inputs.rates.product_seconds


def _resnet(inputs: Inputs, step: Any, trusted: float) -> tuple[float, float]:
    """A training step costs three forward passes; one of a ResNet-34 takes 3.67 G products at 224 pixels."""
    forward = 3.67e9 * (step.image_size / 224) ** 2 * inputs.rates.product_seconds
    return 3 * step.samples_seen * forward, forward


def _autoencoder(inputs: Inputs, step: Any, trusted: float) -> tuple[float, float]:
    """Twelve squares of the width for each block and token, in encoder and decoder."""
    tokens = step.tokens + (step.image_size // step.patch) ** 2
    forward = 12 * step.width**2 * step.depth * tokens * (2 - step.mask_ratio) * inputs.rates.product_seconds
    return 3 * step.samples_seen * forward, step.draws * forward


_NETWORKS: Mapping[str, Callable[[Inputs, Any, float], tuple[float, float]]] = {
    "binary_embeddings": _logistic,
    "binary_images": _resnet,
    "masked_autoencoder": _autoencoder,
}
"""CPU seconds of the training, and of each row's score."""
