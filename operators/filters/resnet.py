"""A binary classifier of images: a network of timm with one logit, trusted images against images of the pool.

One of the filters of Fang et al. 2023 (arXiv 2309.17425, Table 1), theirs a ResNet-34.

Legend: P positive images, Q negative ones, B rows of a batch, H height, W width, C colours (RGB).
"""

import textwrap
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


def check_image_size(network: nn.Module, name: str, size: int) -> None:
    """Puts one blank image through a network on the CPU, which it leaves in evaluation mode.

    Args:
        network: of `build_classifier`.
        name: of it, for the message.
        size: side of the image.

    Raises:
        ModelError: it does not take images of that size, or gives them no logit.
    """
    rule = f"model must be one that takes images of {size} x {size} pixels (image_size)"
    try:
        with torch.inference_mode():
            shape = tuple(network.eval()(torch.zeros(1, 3, size, size)).shape)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        words = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ModelError(f"{rule}, got {name!r}: {words or type(error).__name__}") from error
    if shape != (1, 1):
        raise ModelError(f"{rule} and gives them one logit, got {name!r}, which gives {shape}")


def classification_loss(
    network: nn.Module, trusted_PHWC: NDArray[np.uint8], pool_QHWC: NDArray[np.uint8], rng: np.random.Generator
) -> Callable[[NDArray[np.int64]], Tensor]:
    """The mean logistic loss of batches of images, each mirrored and shifted as `rng` says.

    Args:
        network: of `build_classifier`, on its device.
        trusted_PHWC: the positive images: rows 0 to P - 1.
        pool_QHWC: the negative ones: the rows after them.
        rng: of the augmentation.
    """
    device = next(network.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in normalization(network))

    def loss(rows_B: NDArray[np.int64]) -> Tensor:
        trusted_B = rows_B < len(trusted_PHWC)
        pixels_BHWC = np.empty((len(rows_B), *trusted_PHWC.shape[1:]), np.uint8)
        pixels_BHWC[trusted_B] = trusted_PHWC[rows_B[trusted_B]]
        pixels_BHWC[~trusted_B] = pool_QHWC[rows_B[~trusted_B] - len(trusted_PHWC)]
        pixels = torch.from_numpy(augment(pixels_BHWC, rng)).to(device)
        x_BCHW = (pixels.permute(0, 3, 1, 2).float() / 255.0 - mean) / std
        logit_B = network(x_BCHW.contiguous()).squeeze(1)
        return F.binary_cross_entropy_with_logits(logit_B, torch.from_numpy(trusted_B).float().to(device))

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
