"""`masked_autoencoder`: minus the loss with which a masked autoencoder, trained on trusted pairs, rebuilds a pair.

M3AE (Geng et al. 2022, arXiv 2205.14204), as one of the filters of Fang et al. 2023 (arXiv 2309.17425, Table 1). Reads
images and captions of the pool and of the trusted set. Output column: `score`, float64; null where a sample has no
caption, or none with a token in it.

A pair's masks are drawn by its uid and the seed that the network was trained with.

Legend: N samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from operators.errors import InputError
from operators.hashing import generator
from pipeline.config.problems import KeyProblem
from pipeline.filters.drawing import draw_rows
from pipeline.filters.files import TrainedFilter, filter_bytes
from pipeline.filters.pairs import PAIR_COLUMNS, PairReader, Pairs, has_pair
from pipeline.filters.scoring import Build, Scorer
from pipeline.filters.training import Wanted
from pipeline.run import Plan, Read, Run
from pipeline.steps.learned import Learned
from pipeline.steps.networks import NetworkFilter, last_loss


class MaskedAutoencoder(NetworkFilter):
    """Settings of the step: those of `NetworkFilter`, and these.

    Attributes:
        image_size: side of the square that images are cut and scaled to.
        patch: side of a patch; divides `image_size`.
        tokens: of a caption that are looked at.
        vocabulary: of the commonest tokens of the trusted captions; all others are one.
        width: of the encoder, a multiple of 64; it has an attention head for each 32. The decoder has half of it.
        depth: layers of the encoder; the decoder has half of them.
        mask_ratio: share of patches and of tokens that are hidden.
        text_weight: of the loss of tokens, against 1 for that of patches.
        draws: masks of a pair that its score is the mean over.
    """

    applied: ClassVar[frozenset[str]] = Learned.applied | {"draws"}
    told: ClassVar[frozenset[str]] = frozenset({"shape", "text_weight", "seed"})

    step: Literal["masked_autoencoder"]
    image_size: int = Field(default=32, ge=8, le=1024)
    patch: int = Field(default=4, ge=1)
    tokens: int = Field(default=32, ge=1, le=256)
    vocabulary: int = Field(default=8192, ge=1)
    width: int = Field(default=128, ge=64, multiple_of=64)
    depth: int = Field(default=4, ge=1)
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    text_weight: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    draws: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        if self.image_size % self.patch:
            raise KeyProblem(("patch",), f"must divide image_size ({self.image_size}), got {self.patch}")
        patches = (self.image_size // self.patch) ** 2
        if patches == 1:
            raise KeyProblem(("patch",), f"must be smaller than image_size ({self.image_size}), got {self.patch}")
        if round(patches * self.mask_ratio) >= patches:
            rule = f"must leave one of the {patches} patches to be seen"
            raise KeyProblem(("mask_ratio",), f"{rule}, got {self.mask_ratio}")
        return self

    def plan_training(self, run: Run, trusted: Run, identity: Mapping[str, Any]) -> Plan:
        """The trusted pairs; nothing is learnt from the pool."""
        identity = {name: value for name, value in identity.items() if name != "draws"}
        return trusted.plan(f"{self.title}.training", identity, [Read(trusted.samples, PAIR_COLUMNS)], reduces=True)

    def train(self, plan: Plan, trusted: Run) -> bytes:
        """Trains the network on the trusted pairs."""
        pairs = draw_rows(plan, plan.name, has_pair)
        self.check_number("trusted", pairs.count, trusted.samples.rows, "an image and a caption")
        sets = [Wanted(plan, PairReader(trusted.store, trusted.pool, self.image_size), pairs)]
        return self.train_on(trusted, plan.name, sets)

    def score_settings(self) -> Mapping[str, Any]:
        """The number of masks changes a score and not the network."""
        return {"draws": self.draws}

    def learn(self, seed: int, sets: Sequence[Pairs]) -> Iterator[float | bytes]:
        """Trains the network. Raises InputError where all captions are the same."""
        from operators.encoders.torch_encoder import choose_runtime, numerics  # imports torch, as the others do
        from operators.filters.fitting import fit_network
        from operators.filters.m3ae import Shape
        from operators.filters.reconstruction import build_autoencoder, reconstruction_loss
        from operators.filters.tokens import PAD, learn_vocabulary

        (pairs,) = sets
        captions = [caption or "" for caption in pairs.captions]
        vocabulary = learn_vocabulary(captions, self.vocabulary)
        token_NL = vocabulary.encode(captions, self.tokens)
        worded_N = (token_NL != PAD).any(axis=1)
        distinct = len(np.unique(token_NL[worded_N], axis=0))
        if distinct < 2:
            rule = f"{self.title}.trusted must hold captions that differ"
            raise InputError(f"{rule}, got {distinct} different in {len(pairs)} pairs")
        names = ("image_size", "patch", "tokens", "width", "depth", "mask_ratio")
        shape = Shape(vocabulary=len(vocabulary), **{name: getattr(self, name) for name in names})
        rng = generator(seed, self.title, "training")
        runtime = choose_runtime("float32", self.batch_size, "auto", self.threads)
        losses = []
        with numerics(runtime):
            network = build_autoencoder(shape, seed).to(runtime.device)
            arrays = (pairs.pixels_NHWC[worded_N], token_NL[worded_N])
            loss = reconstruction_loss(network, *arrays, self.text_weight, rng)
            for value in fit_network(self.title, network, loss, len(arrays[0]), self.recipe, rng):
                losses.append(value)
                yield value
        tensors = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
        settings = {"shape": asdict(shape), "text_weight": self.text_weight, "seed": seed}
        training = {"trusted": int(worded_N.sum()), "captions": distinct, "loss": last_loss(losses)}
        yield filter_bytes(self.step, {**tensors, _VOCABULARY: vocabulary.pairs_V}, settings, training)

    @property
    def loader(self) -> Build:
        """The network, on a GPU where there is one."""
        return partial(load_autoencoder, self.draws)


_SCORED_TOGETHER = 64
_VOCABULARY = "vocabulary"


@dataclass
class _Autoencoder:
    size: int
    scorer: Any
    needs_caption: bool = True

    def score(self, pairs: Pairs) -> NDArray[np.float32]:
        captions = [str(caption) for caption in pairs.captions]
        score_N: NDArray[np.float32] = self.scorer.score(pairs.pixels_NHWC, captions, pairs.high_N, pairs.low_N)
        return score_N


def load_autoencoder(draws: int, trained: TrainedFilter) -> Scorer:
    """The network, on a GPU where there is one."""
    import torch

    from operators.encoders.torch_encoder import choose_runtime, must_fit
    from operators.filters.m3ae import Shape
    from operators.filters.reconstruction import ReconstructionScorer, build_autoencoder
    from operators.filters.tokens import Vocabulary

    settings, tensors = trained.settings, dict(trained.tensors)
    vocabulary = Vocabulary(tensors.pop(_VOCABULARY))
    runtime = choose_runtime("float32", _SCORED_TOGETHER, "auto", 1)
    network = build_autoencoder(Shape(**settings["shape"]), 0)
    with must_fit(f"the network of {trained.place}"):
        network.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    network.eval().requires_grad_(False).to(runtime.device)
    scorer = ReconstructionScorer(network, vocabulary, settings["text_weight"], draws, settings["seed"], runtime)
    return _Autoencoder(settings["shape"]["image_size"], scorer)
