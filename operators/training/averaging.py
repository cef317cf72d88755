"""Averaging of weights: a model between the one before fine-tuning and the one after."""

from collections.abc import Mapping

import torch
from torch import Tensor


def average_states(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The straight line between two models of one architecture.

    Args:
        before: tensors by name.
        after: tensors of the same names and shapes.
        share: of `before` in the result, in [0, 1]; 0 gives `after`.

    Returns:
        `(1 - share) * after + share * before` for floating-point tensors, those of `after` for counters.

    Raises:
        ValueError: the names differ.

    Notes:
        Wortsman et al.: Robust fine-tuning of zero-shot models, 2022, section 3; Data Filtering Networks (2309.17425),
        section 3, averages its filter so and does not say with which share.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise ValueError(f"the two states must have the same names, got {odd} in one only")
    return {
        name: torch.lerp(tensor, before[name].to(tensor), share) if tensor.is_floating_point() else tensor
        for name, tensor in after.items()
    }
