"""What the steps that cluster a model's image embeddings have in common: the settings of the clustering."""

from collections.abc import Sequence

from pydantic import Field

from pipeline.clustering import Iterations, KMeansSettings, Tolerance
from pipeline.run import Modality
from pipeline.steps.base import Step


class Clustered(Step):
    """Settings of the clustering, the same wherever one is made.

    Attributes:
        model: whose image embeddings are clustered.
        clusters: k of k-means.
        iterations, tolerance: of k-means.
    """

    model: str | None = None
    clusters: int | None = Field(default=None, ge=1)
    iterations: Iterations = 20
    tolerance: Tolerance = 0.0

    @property
    def kmeans(self) -> KMeansSettings:
        """The settings as k-means takes them."""
        assert self.clusters is not None
        return KMeansSettings(clusters=self.clusters, iterations=self.iterations, tolerance=self.tolerance)

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's images, where one is named."""
        return () if self.model is None else ((self.model, "image"),)
