"""Which parameters of two towers are trained, which of them decay, and how large the logit scale may grow."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from operators.errors import ConfigError

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

    Batch norms without a parameter that is trained are put into evaluation mode, so that their statistics stay too.

    Args:
        model: an open_clip model, in training mode.
        image: False trains the image tower, True or 0 locks it, a number locks all but so many of its last groups.
        text: the same for the text tower and its last layers.

    Raises:
        ConfigError: the tower cannot be locked in part.

    Notes:
        Zhai et al.: LiT, Zero-Shot Transfer with Locked-image text Tuning, 2022. open_clip's own freezing of statistics
        (3.3) puts a norm without its activation in the place of timm's norms with one, and its locking of a timm tower
        leaves the projection unlocked; so neither is used.
    """
    if image is not False:
        _lock(model.visual, "image", int(image) if image is not True else 0, model.lock_image_tower)
    if text is not False:
        _lock(getattr(model, "text", None), "text", int(text) if text is not True else 0, model.lock_text_tower)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether some of a model's features depend on the other rows of the batch: it trains with batch norm."""
    return any(module.training for module in _batch_norms(model))


def _lock(tower: nn.Module | None, name: str, unlocked: int, lock: Any) -> None:
    """Locks a tower with open_clip's own function; a module that is the tower and nothing else, whole or not at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # open_clip imports what timm has moved
            lock(unlocked)
    except (AssertionError, AttributeError, KeyError, NotImplementedError, RuntimeError) as error:
        rule = "must be true or false for a tower that cannot be locked in part"
        raise ConfigError(f"model.lock_{name} {rule}, got {unlocked} ({error})") from error
    if tower is None:
        return
    if not unlocked:
        tower.requires_grad_(False)
    for norm in _batch_norms(tower):
        if not any(parameter.requires_grad for parameter in norm.parameters()) and (norm.affine or not unlocked):
            norm.eval()


def _batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def clamp_scale(log_scale: Tensor) -> None:
    """Keeps, in place, the logarithm of the logit scale within [0, ln 100]."""
    log_scale.clamp_(0, MAX_LOG_SCALE)
