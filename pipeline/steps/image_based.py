"""`image_based`: keeps the clusters of images that a reference set falls into.

DataComp's image-based filter (Gadre et al. 2023, arXiv 2304.14108, section 4.1): of 100,000 clusters of the pool's CLIP
L/14 image embeddings, those are kept whose centroid is the nearest one to at least one image of ImageNet. Theirs are
fitted on a part of the pool by faiss in float32; here, on the rows that enter, and each decision is exact.

Reads a model's image embeddings, and those of the reference set. Verdict reasons: `far_from_reference`, `no_embedding`.
Details: `cluster`, and `references`, how many of the reference set's images are nearest to its centroid. Beside the
verdicts lies `clusters.parquet`, a row a cluster: `cluster`, `size`, `references`.

Legend: N rows, K clusters.
"""

from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.errors import InputError
from pipeline.artifact import Artifact, parquet_bytes, publish_beside, read_columns
from pipeline.columns import present, scatter
from pipeline.paths import resolve_source
from pipeline.pool import Source
from pipeline.references import check_reference, embed_reference, reference_facts
from pipeline.run import Plan, Read, Run
from pipeline.spread import spread
from pipeline.steps.base import refuse_nightly
from pipeline.steps.clustered import Clustered
from pipeline.steps.clusters import assign_rows, cluster, fit_of
from pipeline.storage import Store
from pipeline.units import Verdicts


class ImageBased(Clustered):
    """Settings of the step: those of `Clustered`, of which model and clusters must be given, and these.

    Attributes:
        reference: the sources of the reference set, as a pool has them.
        min_references: a cluster is kept when its centroid is the nearest one to at least so many of its images.
    """

    step: Literal["image_based"]
    reference: tuple[Source, ...] = Field(min_length=1)
    min_references: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model is None or self.clusters is None:
            raise ValueError("needs model and clusters")
        return self

    def resolved(self) -> Self:
        """The same with the paths of the reference set absolute."""
        return self.model_copy(update={"reference": tuple(map(resolve_source, self.reference))})

    def check(self) -> None:
        """Looks at the reference set before any work. Raises UserError."""
        check_reference(self.reference)

    def check_nightly(self) -> None:
        """Refused: the sizes of its clusters, which lie beside the verdicts, change from night to night."""
        refuse_nightly(self, "image_based", "its clusters are those of one pool; score and filter instead")

    def run(self, run: Run) -> Artifact:
        """Finds or makes the verdicts."""
        assert self.model is not None
        assigned = cluster(run, self.title, self.model, self.kmeans)
        images = embed_reference(run, self.reference, self.embeddings(), f"{self.title}.reference")
        reference = images.embeddings[self.model, "image"]
        plan = run.plan(self.title, self._identity(run, reference), [Read(assigned, {"cluster": "cluster"})])
        if published := plan.published:
            return published
        fit = fit_of(run.store, assigned.info)
        references_K = self._count(plan, assigned.info["fit"], reference, len(fit.sizes_K))
        columns = {"cluster": np.arange(len(references_K)), "size": fit.sizes_K, "references": references_K}
        path = f"{plan.folder}/clusters.parquet"
        publish_beside(run.store, path, parquet_bytes(pa.table(columns)))
        info = {
            "clusters": path,
            "fit": assigned.info["fit"],
            "references": int(references_K.sum()),
            "reference": reference_facts(images),
        }
        return plan.map_verdicts(partial(judge, references_K, self.min_references), info=info)

    def _identity(self, run: Run, reference: Artifact) -> dict[str, Any]:
        """Covers what the reference set holds and not where it lies."""
        identity = self.identity(run)
        return {key: value for key, value in identity.items() if key != "reference"} | {"reference": reference.digest}

    def _count(self, plan: Plan, fit: str, reference: Artifact, num_clusters: int) -> NDArray[np.int64]:
        """How many images of the reference set are nearest to each centroid."""
        run = plan.run
        count = partial(count_nearest, run.store, fit, run.threads, num_clusters)
        references_K = np.zeros(num_clusters, np.int64)
        paths = [part.path for part in reference.parts]
        for counts_K in spread(count, paths, workers=run.workers, num_cpus=run.threads):
            references_K += counts_K
        if not references_K.any():
            got = f"none in {reference.rows} samples"
            raise InputError(f"{self.title}.reference must hold at least one image that can be embedded, got {got}")
        return references_K


def count_nearest(store: Store, fit: str, threads: int, num_clusters: int, path: str) -> NDArray[np.int64]:
    """Int64_K: how many rows of one part of embeddings are nearest to each centroid."""
    assigned = assign_rows(store, fit, threads, read_columns(store, path, ["embedding"]))
    return np.bincount(assigned["cluster"].drop_null().to_numpy(), minlength=num_clusters)


def judge(references_K: NDArray[np.int64], min_references: int, table: pa.Table) -> Verdicts:
    """Keeps the rows whose cluster enough of the reference set falls into."""
    present_N = present(table["cluster"])
    cluster_n = table["cluster"].drop_null().to_numpy()
    kept_N = np.zeros(table.num_rows, dtype=bool)
    kept_N[present_N] = references_K[cluster_n] >= min_references
    columns = [table["cluster"].combine_chunks(), scatter(pa.array(references_K[cluster_n]), present_N)]
    why = np.where(present_N, "far_from_reference", "no_embedding").astype(object)
    details = pa.StructArray.from_arrays(columns, names=["cluster", "references"])
    return Verdicts(kept_N, pa.array(why, pa.string(), mask=kept_N), details)
