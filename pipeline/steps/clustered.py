"""What the steps that cluster a model's image embeddings have in common: the settings of the clustering."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.clustering import KMeansOptions, KMeansSettings, check_init
from pipeline.hierarchy import check_merge
from pipeline.run import Modality
from pipeline.steps.base import Step


class Clustered(Step, KMeansOptions):
    """Settings of the clustering, the same wherever one is made. Those of `KMeansOptions`, and these.

    Attributes:
        model: whose image embeddings are clustered.
        clusters: k of k-means; `auto` is the square root of the number of rows that enter, 50,000 at most.
    """

    model: str | None = None
    clusters: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None

    @model_validator(mode="after")
    def _check_clusters(self) -> Self:
        if isinstance(self.clusters, int):
            check_init(self.init, self.clusters)
        if self.merge and isinstance(self.clusters, int):
            check_merge(self.clusters, self.merge)
        return self

    @property
    def kmeans(self) -> KMeansSettings:
        """The settings as k-means takes them."""
        assert self.clusters is not None
        options = {name: getattr(self, name) for name in KMeansOptions.model_fields}
        return KMeansSettings(clusters=self.clusters, **options)

    @property
    def clusterings(self) -> Sequence[str]:
        """One, where a model and clusters are given."""
        return () if self.model is None or self.clusters is None else (self.title,)

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's images, where one is named."""
        return () if self.model is None else ((self.model, "image"),)


class NearestClustered(Clustered):
    """Settings of a clustering in which every row is in the nearest of its clusters, by exact cosine.

    Whoever compares rows inside clusters, and across their borders, relies on that.
    """

    @model_validator(mode="after")
    def _check_nearest(self) -> Self:
        check_nearest(self)
        return self

    @property
    def kmeans(self) -> KMeansSettings:
        """The settings as k-means takes them; the search is exact for any number of clusters."""
        return super().kmeans.model_copy(update={"search": "exact"})


def check_nearest(options: KMeansOptions) -> None:
    """Raises ValueError where rows would not be in the nearest of their clusters, by exact cosine."""
    for name, needed in (("metric", "spherical"), ("search", "exact"), ("merge", None)):
        if (got := getattr(options, name)) not in (needed, "auto"):
            rule = "since samples are compared inside the nearest of the clusters"
            raise ValueError(f"{name} must be {needed or 'left out'}, {rule}, got {got}")
