"""Contrastive losses in their local form: each worker compares its own rows with everybody's.

The mean of the workers' losses is the loss of the whole batch, and the mean of their gradients its gradient, so one
worker and many train alike. Features are gathered with gradients: what others make of our rows comes back to us.

Legend: B rows of this worker, G rows of all workers, D dimensions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class Pairs(NamedTuple):
    """Unit rows, the image of a pair and its text at one place."""

    image_ND: Tensor
    text_ND: Tensor


class Head(NamedTuple):
    """What turns cosines into logits: the factor, and SigLIP's addend (None for CLIP). Scalars."""

    scale: Tensor
    bias: Tensor | None = None


Loss = Callable[[Pairs, Pairs, Head, int], Tensor]
"""(this worker's pairs, all pairs, head, place of this worker's first pair among all) to a scalar."""


def clip_loss(own: Pairs, everyone: Pairs, head: Head, first: int = 0) -> Tensor:
    """The symmetric cross-entropy of finding each image's text and each text's image among all.

    Args:
        own: this worker's pairs, float32 (B, D).
        everyone: all pairs, float32 (G, D); `own` are its rows [first, first + B).
        head: scale and, rarely, bias of the logits.
        first: place of the first own pair.

    Returns:
        the mean over own rows and both directions.

    Notes:
        Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.3.
    """
    places_B = torch.arange(len(own.image_ND), device=own.image_ND.device) + first
    by_image = F.cross_entropy(_logits(own.image_ND, everyone.text_ND, head), places_B)
    by_text = F.cross_entropy(_logits(own.text_ND, everyone.image_ND, head), places_B)
    return (by_image + by_text) / 2


def siglip_loss(own: Pairs, everyone: Pairs, head: Head, first: int = 0) -> Tensor:
    """The sigmoid loss: each image with each text is a question of its own, answered yes for its own text alone.

    Args:
        own: this worker's pairs, float32 (B, D).
        everyone: all pairs, float32 (G, D); `own` are its rows [first, first + B).
        head: scale and bias of the logits.
        first: place of the first own pair.

    Returns:
        the sum over own images and all texts, divided by B.

    Notes:
        Zhai et al.: Sigmoid Loss for Language Image Pre-Training, 2023, section 3.2.
    """
    logits_BG = _logits(own.image_ND, everyone.text_ND, head)
    rows_B = torch.arange(len(logits_BG), device=logits_BG.device)
    signs_BG = -torch.ones_like(logits_BG)
    signs_BG[rows_B, rows_B + first] = 1
    return -F.logsigmoid(signs_BG * logits_BG).sum() / len(logits_BG)


def gather_rows(x_BD: Tensor) -> Tensor:
    """The rows of all workers, in the order of their ranks, with gradients; alone, the rows themselves.

    Args:
        x_BD: the same shape on every worker.

    Returns:
        x_GD.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x_BD
    return cast(Tensor, _GatherRows.apply(x_BD))  # type: ignore[no-untyped-call]


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward pass sums what every worker's loss says of each row and keeps our own rows."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        x_BD = x_BD.contiguous()
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD)
        ctx.rows = len(x_BD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole_GD = gradients[0].contiguous()
        dist.all_reduce(whole_GD)
        return whole_GD.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def _logits(x_BD: Tensor, y_GD: Tensor, head: Head) -> Tensor:
    logits_BG = head.scale * x_BD @ y_GD.T
    return logits_BG if head.bias is None else logits_BG + head.bias
