"""`binary_images`: the logit of a classifier of images, a ResNet trained to tell trusted ones from those of the pool.

One of the filters of Fang et al. 2023 (arXiv 2309.17425, Table 1). Reads the images of the pool and of the trusted set.
Negatives are drawn as in `binary_embeddings`. Output column: `score`, float64; null where a sample has no image.

Legend: N samples.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from operators.encoders.base import Encoder
from operators.encoders.settings import TimmSettings
from operators.errors import ModelError
from operators.hashing import generator
from pipeline.filters.drawing import draw_rows
from pipeline.filters.files import TrainedFilter, filter_bytes
from pipeline.filters.pairs import PAIR_COLUMNS, PairReader, Pairs, has_image
from pipeline.filters.scoring import Build, Scorer
from pipeline.filters.training import Wanted
from pipeline.models import check_model, model_identity
from pipeline.paths import resolve_model
from pipeline.run import Plan, Read, Run
from pipeline.steps.learned import Learned
from pipeline.steps.networks import NetworkFilter, last_loss


class BinaryImages(NetworkFilter):
    """Settings of the step: those of `NetworkFilter`, and these.

    Attributes:
        model: a classifier of timm; ResNet-34 as in the paper unless given.
        weights: `random`, `hub`, or a file, to start from.
        image_size: side of the square that images are cut and scaled to.
        negatives: samples of the pool to learn from; as many as are trusted unless given.
    """

    applied: ClassVar[frozenset[str]] = Learned.applied
    told: ClassVar[frozenset[str]] = frozenset({"model", "image_size"})

    step: Literal["binary_images"]
    model: str = Field(default="resnet34", min_length=1)
    weights: str = Field(default="random", min_length=1)
    image_size: int = Field(default=64, ge=8, le=1024)
    negatives: int | None = Field(default=None, ge=2)

    def check(self) -> None:
        """Looks at the trusted set and at what the network starts from."""
        super().check()
        if self.trained is not None:
            return
        check_model(self._start)
        from operators.filters.resnet import build_classifier, check_image_size  # imports torch

        try:
            check_image_size(build_classifier(self.model, None, 0), self.model, self.image_size)
        except ModelError as error:
            raise ModelError(f"{self.title}: {error}") from error

    def resolved(self) -> Self:
        """The same with every path absolute."""
        start = cast("TimmSettings", resolve_model(self._start))
        return super().resolved().model_copy(update={"weights": start.weights})

    def identity(self, run: Run) -> dict[str, Any]:
        """Names the weights by their content."""
        return super().identity(run) | {"weights": model_identity(self._start)}

    def plan_training(self, run: Run, trusted: Run, identity: Mapping[str, Any]) -> Plan:
        """All images of the pool, of which negatives are drawn."""
        return run.plan(f"{self.title}.training", identity, self.score_reads(run), reduces=True)

    def train(self, plan: Plan, trusted: Run) -> bytes:
        """Draws negatives, and trains the network on their images and the trusted ones."""
        run = plan.run
        theirs = trusted.plan(plan.name, {}, [Read(trusted.samples, PAIR_COLUMNS)], reduces=True)
        positives = draw_rows(theirs, plan.name, has_image)
        self.check_number("trusted", positives.count, trusted.samples.rows, "an image")
        negatives = draw_rows(plan, f"{self.title}.negatives", has_image, self.negatives or positives.count)
        self.check_number("negatives", negatives.count, run.num_entering, "an image")
        sets = [
            Wanted(rows, PairReader(run.store, rows.run.pool, self.image_size), drawn)
            for rows, drawn in ((theirs, positives), (plan, negatives))
        ]
        return self.train_on(run, plan.name, sets)

    def learn(self, seed: int, sets: Sequence[Pairs]) -> Iterator[float | bytes]:
        """Trains the network on trusted images and on those of the pool."""
        from operators.encoders.torch_encoder import choose_runtime, numerics  # imports torch, as the next two do
        from operators.filters.fitting import fit_network
        from operators.filters.resnet import build_classifier, classification_loss
        from pipeline.models.timm import load_weights

        trusted, pool = sets
        rng = generator(seed, self.title, "training")
        runtime = choose_runtime("float32", self.batch_size, "auto", self.threads)
        losses = []
        with numerics(runtime):
            network = build_classifier(self.model, load_weights(self._start), seed).to(runtime.device)
            loss = classification_loss(network, trusted.pixels_NHWC, pool.pixels_NHWC, rng)
            for value in fit_network(self.title, network, loss, len(trusted) + len(pool), self.recipe, rng):
                losses.append(value)
                yield value
        tensors = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
        settings = {"model": self.model, "image_size": self.image_size}
        training = {
            "trusted": len(trusted),
            "negatives": len(pool),
            "negatives_trusted": count_shared(trusted, pool),
            "loss": last_loss(losses),
        }
        yield filter_bytes(self.step, tensors, settings, training)

    @property
    def loader(self) -> Build:
        """The network, on a GPU where there is one."""
        return load_classifier

    @property
    def _start(self) -> TimmSettings:
        return TimmSettings(library="timm", name=self.model, weights=self.weights, storage=self.storage)


_SCORED_TOGETHER = 32


@dataclass
class _Classifier:
    size: int
    encoder: Encoder
    needs_caption: bool = False

    def score(self, pairs: Pairs) -> NDArray[np.float32]:
        return self.encoder.encode_images(pairs.pixels_NHWC)[:, 0]


def load_classifier(trained: TrainedFilter) -> Scorer:
    """The network, on a GPU where there is one."""
    import torch

    from operators.encoders.torch_encoder import choose_runtime, must_fit
    from operators.filters.resnet import build_classifier, classifier_scorer

    network = build_classifier(trained.settings["model"], None, 0)
    with must_fit(f"the network {trained.settings['model']} of {trained.place}"):
        network.load_state_dict({name: torch.tensor(array) for name, array in trained.tensors.items()})
    encoder = classifier_scorer(network, choose_runtime("float32", _SCORED_TOGETHER, "auto", 1))
    return _Classifier(trained.settings["image_size"], encoder)


def count_shared(trusted: Pairs, pool: Pairs) -> int:
    """How many images of the pool are the same as some trusted one, pixel by pixel as the network sees them."""
    known = set(map(_pixels_digest, trusted.pixels_NHWC))
    return sum(_pixels_digest(image) in known for image in pool.pixels_NHWC)


def _pixels_digest(pixels_HWC: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(pixels_HWC.tobytes(), digest_size=16).digest()
