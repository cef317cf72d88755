"""What the steps that cluster a model's image embeddings have in common: the settings of the clustering."""

from collections.abc import Sequence

from pydantic import Field

from pipeline.clustering import KMeansOptions, KMeansSettings
from pipeline.run import Modality
from pipeline.steps.base import Step


class Clustered(Step, KMeansOptions):
    """Settings of the clustering, the same wherever one is made. Those of `KMeansOptions`, and these.

    Attributes:
        model: whose image embeddings are clustered.
        clusters: k of k-means.
    """

    model: str | None = None
    clusters: int | None = Field(default=None, ge=1)

    @property
    def kmeans(self) -> KMeansSettings:
        """The settings as k-means takes them."""
        assert self.clusters is not None
        options = {name: getattr(self, name) for name in KMeansOptions.model_fields}
        return KMeansSettings(clusters=self.clusters, **options)

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's images, where one is named."""
        return () if self.model is None else ((self.model, "image"),)
