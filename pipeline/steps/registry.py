"""Every kind of step that a config may name. A new kind is a module beside this one and a line here."""

from typing import Annotated

from pydantic import Field

from pipeline.steps.binary_embeddings import BinaryEmbeddings
from pipeline.steps.binary_images import BinaryImages
from pipeline.steps.decontaminate import Decontaminate
from pipeline.steps.deny import Deny
from pipeline.steps.exact_dedup import ExactDedup
from pipeline.steps.filter import Filter
from pipeline.steps.image_based import ImageBased
from pipeline.steps.intersection import Intersection
from pipeline.steps.masked_autoencoder import MaskedAutoencoder
from pipeline.steps.prune import AnyPrune
from pipeline.steps.python import Python
from pipeline.steps.rules import Rules
from pipeline.steps.score import Score
from pipeline.steps.semantic_dedup import SemanticDedup
from pipeline.steps.sweep import Sweep

AnyStep = Annotated[
    Rules
    | Deny
    | ExactDedup
    | SemanticDedup
    | Sweep
    | Decontaminate
    | Score
    | BinaryEmbeddings
    | BinaryImages
    | MaskedAutoencoder
    | Filter
    | ImageBased
    | AnyPrune
    | Intersection
    | Python,
    Field(discriminator="step"),
]

Intersection.model_rebuild(_types_namespace={"AnyStep": AnyStep})  # it holds steps of any kind
