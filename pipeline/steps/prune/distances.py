"""Distances of every row to the prototypes: the clusters or class means of the pool, or of a separate target set.

Reads a model's image embeddings, and the metadata where classes matter. Output columns, null for rows that `lacks`:

- `prototype` int32: the row's own, its cluster or its class;
- `group` int32: what the row is compared within (0 where that is the whole pool);
- `distance` float64: to its own prototype; 1 - cosine (to a centroid of Euclidean k-means, half the squared distance),
  or Euclidean with `difficulty: margin`;
- `margin` float64 and `other` int32, with `difficulty: margin` alone: d(own) - d(nearest other) - d(second other), and
  which prototype the nearest other is;
- `lacks` string: `no_embedding`, `no_label` or `unknown_label` (no sample of the target has it), else null.

Beside the parts lies `prototypes.npz`: `vectors_PD`, and `classes`, their names as JSON.

Legend: N rows of a table, n those that lack nothing, P prototypes, D dimensions.
"""

import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import InputError
from operators.prototypes import cosine_distance, margins, mean_prototypes
from pipeline.artifact import Artifact, publish_beside
from pipeline.clustering import KMeansSettings
from pipeline.columns import embeddings, present, scatter
from pipeline.integrity import read_arrays
from pipeline.pool import Source
from pipeline.references import embed_reference, reference_facts
from pipeline.run import Modality, Plan, Read, Run
from pipeline.steps.clusters import assign_rows, cluster, fit_of
from pipeline.steps.prune.classes import class_ids, find_classes, find_names, labels
from pipeline.storage import Store

VERSION = 1

Grouping = Literal["cluster", "class"] | None
Assign = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Measure:
    """What is measured. Picklable: it travels to the workers.

    Attributes:
        title: of the step that asks.
        model: whose image embeddings are compared.
        kmeans: how prototypes are found; None where they are the means of classes.
        label: field of the metadata that holds the class, where classes matter.
        margin: whether the other prototypes are measured, too.
        grouping: what rows are compared within; None is the whole pool.
    """

    title: str
    model: str
    kmeans: KMeansSettings | None
    label: str | None
    margin: bool
    grouping: Grouping

    @property
    def identity(self) -> dict[str, Any]:
        """What addresses the distances, besides what they are measured from."""
        kmeans = self.kmeans and self.kmeans.model_dump(mode="json")
        facts = {"kmeans": kmeans, "label": self.label, "margin": self.margin, "grouping": self.grouping}
        return {"kind": "distances", "version": VERSION, **facts}


@dataclass(frozen=True)
class Prototypes:
    """What `prototypes.npz` holds: float64 vectors on the grid, and the names of the classes, sorted, if any."""

    vectors_PD: NDArray[np.float64]
    classes: tuple[str, ...]


def measure(run: Run, what: Measure, target: Source | None) -> Artifact:
    """Finds or makes the distances of the entering rows.

    Raises:
        InputError: there are too few prototypes, or no labels.
    """
    image = Read(run.embeddings[what.model, "image"], {"embedding": "embedding"})
    reads = [image] + ([Read(run.samples, {"metadata": "metadata"})] if what.label else [])
    needs: list[tuple[str, Modality]] = [(what.model, "image")]
    home = embed_reference(run, [target], needs, f"{what.title}.target") if target else run
    inputs = [home.samples.digest, home.embeddings[what.model, "image"].digest] if target else []
    fit = None
    if what.kmeans:
        fit = cluster(home, f"{what.title}.target" if target else what.title, what.model, what.kmeans)
        if target:
            inputs.append(fit.digest)
        else:
            reads.append(Read(fit, {"cluster": "cluster", "similarity": "similarity"}))
    plan = run.plan(f"{what.title}.distances", what.identity | {"target": inputs}, reads, reduces=True)
    if published := plan.published:
        return published
    path = f"{plan.folder}/prototypes.npz"
    if not run.store.exists(path):  # a run that was stopped while it measured rows has left it
        publish_beside(run.store, path, _npz(_find(plan, what, fit, home if target else None)))
    check_enough(read_prototypes(run.store, path), what)
    assign = partial(assign_rows, run.store, fit.info["fit"], run.threads) if fit and target else None
    info = {"prototypes": path, "reference": reference_facts(home) if target else None}
    measured = partial(measure_rows, run.store, path, what, assign)
    return plan.map_attributes(measured, info=info, threads=run.threads if assign else 1)


def _find(plan: Plan, what: Measure, fit: Artifact | None, target: Run | None) -> Prototypes:
    """The prototypes, and the classes of the pool where rows are compared within them."""
    if fit:
        names = find_names(plan, what.title, what.label) if what.label else ()
        return Prototypes(fit_of(plan.run.store, fit.info).centroids_KD, names)
    from operators.kmeans import unit_rows  # imports torch

    assert what.label
    if target:
        image = Read(target.embeddings[what.model, "image"], {"embedding": "embedding"})
        reads = [image, Read(target.samples, {"metadata": "metadata"})]
        plan = target.plan(f"{what.title}.target", {}, reads)
    found = find_classes(plan, what.title, what.label)
    means = mean_prototypes(found.sums_CD, found.counts_C) if what.margin else unit_rows(found.sums_CD)
    return Prototypes(means, found.names)


def check_enough(prototypes: Prototypes, what: Measure) -> None:
    """Raises InputError where a margin has no two other prototypes to look at."""
    if what.margin and len(prototypes.vectors_PD) < 3:
        kind = "clusters" if what.kmeans else f"classes ({', '.join(prototypes.classes)})"
        raise InputError(
            f"{what.title}.difficulty margin must compare a sample's own prototype with two others, got "
            f"{len(prototypes.vectors_PD)} {kind}; distance needs no others"
        )


def measure_rows(store: Store, path: str, what: Measure, assign: Assign | None, table: pa.Table) -> pa.Table:
    """The distances of every row of a table.

    Args:
        store: the workspace.
        path: of `prototypes.npz`.
        what: to measure.
        assign: gives the clusters of a table, where the table does not hold them.
        table: columns as the module's docstring says.
    """
    prototypes = read_prototypes(store, path)
    class_N, lacks = find_lacks(what.label, prototypes.classes, table)
    usable_N = ~present(lacks)
    rows, class_n = table.filter(pa.array(usable_N)), class_N[usable_N]
    x_nD = embeddings(rows["embedding"])

    columns: dict[str, NDArray[Any]] = {}
    if what.kmeans:
        assigned = assign(rows) if assign else rows
        own_n, columns["distance"] = assigned["cluster"].to_numpy(), 1.0 - assigned["similarity"].to_numpy()
    else:
        own_n = class_n
    if what.margin:
        margin = margins(x_nD, prototypes.vectors_PD, own_n)
        columns |= {"distance": margin.own_N, "margin": margin.value_N, "other": margin.other_N}
    elif not what.kmeans:
        columns["distance"] = cosine_distance(x_nD, prototypes.vectors_PD, own_n)
    group_n = {"cluster": own_n, "class": class_n, None: np.zeros_like(own_n)}[what.grouping]
    columns |= {"prototype": own_n, "group": group_n}
    arrays = {name: scatter(pa.array(values), usable_N) for name, values in columns.items()}
    return pa.table(arrays | {"lacks": lacks})


def find_lacks(label: str | None, classes: Sequence[str], table: pa.Table) -> tuple[NDArray[np.int32], pa.Array]:
    """The class of every row (-1 where it has none), and what the row lacks to be measured, or null."""
    class_N, lack_N = np.full(table.num_rows, -1, np.int32), np.zeros(table.num_rows, np.int8)
    if label:
        names_N = labels(label, table["metadata"])
        class_N = class_ids(names_N, classes)
        lack_N = np.where(present(names_N), np.where(class_N < 0, 3, 0), 2)
    lack_N = np.where(present(table["embedding"]), lack_N, 1)
    return class_N, pa.array([None, "no_embedding", "no_label", "unknown_label"]).take(pa.array(lack_N))


@functools.lru_cache(maxsize=2)
def read_prototypes(store: Store, path: str) -> Prototypes:
    """Published prototypes; each worker reads them once."""
    arrays = read_arrays(store, path)
    return Prototypes(arrays["vectors_PD"], tuple(json.loads(str(arrays["classes"]))))


def _npz(prototypes: Prototypes) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, vectors_PD=prototypes.vectors_PD, classes=np.array(json.dumps(prototypes.classes)))
    return sink.getvalue()
