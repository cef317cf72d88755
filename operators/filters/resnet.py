"""A binary classifier of images: a network of timm with one logit, trusted images against images of the pool.

One of the filters of Fang et al. 2023 (arXiv 2309.17425, Table 1), theirs a ResNet-34.

Legend: N rows, B rows of a batch, H height, W width, C colours (RGB).
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from operators import torchvision_ops  # noqa: F401

# isort: split
import timm

from operators.encoders.torch_encoder import Runtime, TorchEncoder, Towers, must_fit, seeded
from operators.errors import ModelError

_SHIFT = 8
"""Images are shifted by up to an eighth of their side."""


def build_classifier(name: str, state_dict: Mapping[str, Tensor] | None, seed: int) -> nn.Module:
    """A network of timm with one logit, on the CPU.

    Args:
        name: of timm's.
        state_dict: weights to start from, whose own classifier is left out; None for random ones.
        seed: of what is drawn.

    Raises:
        ModelError: timm does not know the name, or the weights are those of another architecture.
    """
    try:
        with seeded(seed):
            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=1)
    except RuntimeError as error:
        raise ModelError(f"model must be one of timm's, got {name!r}: {error}") from error
    if state_dict is not None:
        own = {f"{layer}.{part}" for layer in _classifiers(network) for part in ("weight", "bias")}
        kept = {key: value for key, value in state_dict.items() if key not in own}
        kept |= {key: value for key, value in network.state_dict().items() if key in own}
        with must_fit(name):
            network.load_state_dict(kept)
    return network


def classification_loss(
    network: nn.Module, pixels_NHWC: NDArray[np.uint8], trusted_N: NDArray[np.bool_], rng: np.random.Generator
) -> Callable[[NDArray[np.int64]], Tensor]:
    """The mean logistic loss of batches of images, each mirrored and shifted as `rng` says.

    Args:
        network: of `build_classifier`, on its device.
        pixels_NHWC: all images.
        trusted_N: which are the positive ones.
        rng: of the augmentation.
    """
    device = next(network.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in normalization(network))
    labels_N = torch.from_numpy(trusted_N).float()

    def loss(rows_B: NDArray[np.int64]) -> Tensor:
        pixels_BHWC = torch.from_numpy(augment(pixels_NHWC[rows_B], rng)).to(device)
        x_BCHW = (pixels_BHWC.permute(0, 3, 1, 2).float() / 255.0 - mean) / std
        logit_B = network(x_BCHW.contiguous()).squeeze(1)
        return F.binary_cross_entropy_with_logits(logit_B, labels_N[torch.from_numpy(rows_B)].to(device))

    return loss


def classifier_scorer(network: nn.Module, runtime: Runtime) -> TorchEncoder:
    """What gives logits, (N, 1) float32, by `encode_images`: a row's does not depend on those beside it."""
    mean, std = normalization(network)
    network.eval().requires_grad_(False).to(runtime.device)
    return TorchEncoder(Towers(1, mean, std, network), runtime)


def normalization(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each colour, for pixels in [0, 1], as the network's makers had them."""
    record = _makers_record(network)
    return tuple(record["mean"]), tuple(record["std"])


def augment(pixels_BHWC: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Images shifted by up to an eighth of their side, the border reflected, and about half of them mirrored."""
    count, height, width, _ = pixels_BHWC.shape
    down, right = height // _SHIFT, width // _SHIFT
    padded = np.pad(pixels_BHWC, ((0, 0), (down, down), (right, right), (0, 0)), mode="reflect")
    top_B, left_B = rng.integers(0, 2 * down + 1, count), rng.integers(0, 2 * right + 1, count)
    moved_BHWC = np.stack(
        [padded[i, top_B[i] : top_B[i] + height, left_B[i] : left_B[i] + width] for i in range(count)]
    )
    mirrored_B = rng.random(count) < 0.5
    moved_BHWC[mirrored_B] = moved_BHWC[mirrored_B][:, :, ::-1]
    return moved_BHWC


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    names = _makers_record(network)["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def _makers_record(network: nn.Module) -> Mapping[str, Any]:
    """What timm keeps with every model of how it was trained."""
    return cast("Mapping[str, Any]", network.pretrained_cfg)
