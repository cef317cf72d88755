"""The gradient of one contrastive batch, in one piece or in several that fit into memory one after the other.

A contrastive loss compares every pair with every other, so gradients of parts of a batch do not add up to that of the
whole. In several pieces, all features are computed first without gradients; the loss of the whole gives the gradient
of each feature; then each piece is computed again and its features' gradients are sent back through the towers.

    Gao et al.: Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021 (GradCache).

Legend: B pairs of this worker, G pairs of all workers, D dimensions, L tokens.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from operators.training.losses import Head, Loss, Pairs, gather_rows

Forward = Callable[[Tensor, Tensor], tuple[Pairs, Head]]
"""Normalised pixels (B, C, H, W) and tokens (B, L) to unit features and the logits' head."""


class Batch(NamedTuple):
    """What one worker sees of a batch: normalised float pixels (B, C, H, W) and int64 tokens (B, L)."""

    pixels: Tensor
    tokens: Tensor


def backward_whole(forward: Forward, batch: Batch, loss: Loss, reseed: Callable[[int], None]) -> Tensor:
    """Adds the gradient of a batch in one piece.

    Args:
        forward: the towers.
        batch: of this worker.
        loss: of this worker's pairs among all.
        reseed: called with 0 before the forward pass: sets the generators that dropout draws from.

    Returns:
        this worker's loss, detached; the mean over workers is the batch's.
    """
    reseed(0)
    own, head = forward(*batch)
    value = loss(own, _everyone(own), head, _first(own))
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def backward_in_pieces(
    forward: Forward, batch: Batch, loss: Loss, reseed: Callable[[int], None], *, pieces: int, local: Any = None
) -> Tensor:
    """Adds the gradient of a batch in several pieces: the same up to rounding, in the memory of one piece.

    Args:
        forward: the towers.
        batch: of this worker.
        loss: of this worker's pairs among all.
        reseed: called with the piece's number before each of its two forward passes, so that both drop the same.
        pieces: how many; divides B.
        local: gives a context in which gradients are not exchanged between workers (`DistributedDataParallel.no_sync`);
            used for all pieces but the last.

    Returns:
        as `backward_whole`.
    """
    parts = [Batch(*part) for part in zip(*(tensor.chunk(pieces) for tensor in batch), strict=True)]
    with torch.no_grad():
        features = []
        for i, part in enumerate(parts):
            reseed(i)
            pairs, head = forward(*part)
            features.append(pairs)
    own = Pairs(*(torch.cat(side).requires_grad_() for side in zip(*features, strict=True)))
    head = Head(*(None if value is None else value.detach().requires_grad_() for value in head))  # type: ignore[arg-type]
    value = loss(own, _everyone(own), head, _first(own))
    value.backward()  # type: ignore[no-untyped-call]

    gradients = [Batch(*part) for part in zip(*(side.grad.chunk(pieces) for side in own), strict=True)]  # type: ignore[union-attr]
    for i, (part, (image_grad, text_grad)) in enumerate(zip(parts, gradients, strict=True)):
        exchanging = local is None or i == pieces - 1
        with contextlib.nullcontext() if exchanging else local():
            reseed(i)
            pairs, live = forward(*part)
            # The sum of products has the wanted gradients; the head's are spread evenly over the pieces.
            total = (pairs.image_ND * image_grad).sum() + (pairs.text_ND * text_grad).sum()
            for output, seen in zip(live, head, strict=True):
                if output is not None and seen is not None and seen.grad is not None:
                    total = total + output * seen.grad / pieces
            total.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def _everyone(own: Pairs) -> Pairs:
    return Pairs(gather_rows(own.image_ND), gather_rows(own.text_ND))


def _first(own: Pairs) -> int:
    return dist.get_rank() * len(own.image_ND) if dist.is_initialized() else 0
