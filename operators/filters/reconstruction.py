"""Training a masked autoencoder on trusted pairs, and scoring pairs with it: minus the reconstruction loss.

Legend: N pairs, B of a batch, L places of the text, S patches and places, H height, W width, C colours (RGB).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.encoders.torch_encoder import Runtime, numerics, padded_batches, seeded
from operators.filters.m3ae import MaskedAutoencoder, Shape
from operators.filters.tokens import PAD, Vocabulary
from operators.hashing import keyed_hash

Pixels = NDArray[np.uint8]


def build_autoencoder(shape: Shape, seed: int) -> MaskedAutoencoder:
    """A network with random weights, on the CPU."""
    with seeded(seed):
        return MaskedAutoencoder(shape)


def reconstruction_loss(
    network: MaskedAutoencoder,
    pixels_NHWC: Pixels,
    token_NL: NDArray[np.int64],
    text_weight: float,
    rng: np.random.Generator,
) -> Callable[[NDArray[np.int64]], Tensor]:
    """The mean loss of batches of pairs, with masks that `rng` draws: image loss + text_weight x text loss."""
    device = next(network.parameters()).device
    shape = network.shape

    def loss(rows_B: NDArray[np.int64]) -> Tensor:
        noise_BS = rng.random((len(rows_B), shape.patches + shape.tokens), dtype=np.float32)
        batch = (torch.from_numpy(array).to(device) for array in (pixels_NHWC[rows_B], token_NL[rows_B], noise_BS))
        image_B, text_B = network(*batch)
        mean: Tensor = (image_B + text_weight * text_B).mean()
        return mean

    return loss


@dataclass(frozen=True)
class ReconstructionScorer:
    """Scores pairs with a trained network.

    A pair's masks are drawn by its uid, and every forward pass has the same number of rows and threads, so a score does
    not depend on what is scored with it.

    Attributes:
        network: in evaluation mode, on the runtime's device.
        vocabulary: that it was trained with.
        text_weight: of the text loss, as in training.
        draws: masks that a score is the mean over.
        seed: of the masks.
        runtime: where and how.
    """

    network: MaskedAutoencoder
    vocabulary: Vocabulary
    text_weight: float
    draws: int
    seed: int
    runtime: Runtime

    def score(
        self,
        pixels_NHWC: Pixels,
        captions: Sequence[str],
        high_N: NDArray[np.uint64],
        low_N: NDArray[np.uint64],
    ) -> NDArray[np.float32]:
        """Minus the reconstruction loss of each pair; NaN for captions without a token.

        Args:
            pixels_NHWC: the images.
            captions: N of them.
            high_N: uint64, high halves of the uids.
            low_N: uint64, low halves.
        """
        shape = self.network.shape
        token_NL = self.vocabulary.encode(captions, shape.tokens)
        score_N = np.full(len(captions), np.nan, dtype=np.float32)
        worded_N = (token_NL != PAD).any(axis=1)
        if not worded_N.any():
            return score_N
        losses = [
            self._losses(
                pixels_NHWC[worded_N],
                token_NL[worded_N],
                mask_noise(high_N[worded_N], low_N[worded_N], f"{self.seed}.{draw}", shape.patches + shape.tokens),
            )
            for draw in range(self.draws)
        ]
        score_N[worded_N] = -np.mean(losses, axis=0)
        return score_N

    def _losses(
        self, pixels_NHWC: Pixels, token_NL: NDArray[np.int64], noise_NS: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        size, device = self.runtime.batch_size, self.runtime.device
        batches = zip(*(padded_batches(array, size) for array in (pixels_NHWC, token_NL, noise_NS)), strict=True)
        with torch.inference_mode(), numerics(self.runtime):
            outputs = [self.network(*(tensor.to(device) for tensor in batch)) for batch in batches]
            loss_N = torch.cat([image_B + self.text_weight * text_B for image_B, text_B in outputs])
            return loss_N[: len(pixels_NHWC)].float().cpu().numpy()


def mask_noise(high_N: NDArray[np.uint64], low_N: NDArray[np.uint64], label: str, places: int) -> NDArray[np.float32]:
    """Float32 (N, places) in [0, 1): numbers that belong to each uid, from which its masks follow."""
    hash_SN = [keyed_hash(high_N, low_N, place, f"m3ae.{label}") for place in range(places)]
    return (np.stack(hash_SN, axis=1) / 2.0**64).astype(np.float32)
