"""Averaging of weights: a model between the one before fine-tuning and the one after."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


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
        section 3, averages its filter so and does not say with which share. The statistics of batch norms are averaged
        like weights, but those of the averaged model are others: `renew_statistics` finds them.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise ValueError(f"the two states must have the same names, got {odd} in one only")
    return {
        name: torch.lerp(tensor, before[name].to(tensor), share) if tensor.is_floating_point() else tensor
        for name, tensor in after.items()
    }


@torch.no_grad()
def renew_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Finds, in place, what a module's batch norms see: the mean of their statistics over some batches.

    Args:
        module: on the device of the batches. Norms in evaluation mode keep their statistics.
        batches: inputs (N, ...) of the module.

    Notes:
        As after any averaging of weights: Izmailov et al.: Averaging Weights Leads to Wider Optima, 2018, section 3.2.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    for batch in batches:
        module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
