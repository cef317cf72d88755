"""Which parameters of two towers are trained, which of them decay, and how large the logit scale may grow."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MAX_LOG_SCALE = math.log(100)
"""CLIP, section 2.5: logits are never scaled by more than 100."""

_UNDECAYED = ("bn", "ln", "bias", "logit_scale")


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: what decays, and norms, biases, vectors and the logit scale, which do not.

    Args:
        parameters: (name, parameter) of a model; those without gradients are left out.
        weight_decay: of the first group.

    Returns:
        groups with the keys `params` and `weight_decay`, empty ones left out.

    Notes:
        open_clip's rule, by name and dimensions. A position embedding of two dimensions decays, as it does there.
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    spared = [p for name, p in trained if p.ndim < 2 or any(word in name for word in _UNDECAYED)]
    spared_ids = {id(parameter) for parameter in spared}
    decayed = [parameter for _, parameter in trained if id(parameter) not in spared_ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def lock_towers(model: Any, image: bool | int, text: bool | int) -> None:
    """Stops towers from being trained.

    Args:
        model: an open_clip model.
        image: False trains the image tower, True locks it, a number locks all but so many of its last groups.
        text: the same for the text tower and its last layers.

    Notes:
        Zhai et al.: LiT, Zero-Shot Transfer with Locked-image text Tuning, 2022.
    """
    if image is not False:
        model.lock_image_tower(unlocked_groups=int(image) if image is not True else 0, freeze_bn_stats=True)
    if text is not False:
        model.lock_text_tower(unlocked_layers=int(text) if text is not True else 0)


@torch.no_grad()
def clamp_scale(log_scale: Tensor) -> None:
    """Keeps, in place, the logarithm of the logit scale within [0, ln 100]."""
    log_scale.clamp_(0, MAX_LOG_SCALE)
