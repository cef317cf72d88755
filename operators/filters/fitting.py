"""Training a small network on rows that are all in memory: AdamW, a warm-up, a cosine, and an order from a generator.

For the filters of this package, whose training sets are small. CLIP is trained by `pipeline.training`.

Legend: N rows, B rows of a batch.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from operators.errors import InputError
from operators.filters.recipe import Recipe

Rows = NDArray[np.int64]

_BETAS = (0.9, 0.98)
_LARGEST_GRADIENT = 1.0


def fit_network(
    name: str,
    network: nn.Module,
    loss: Callable[[Rows], Tensor],
    num_rows: int,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Trains a network in place, yielding the loss of each update.

    Args:
        name: of what is trained, for messages.
        network: on its device; left in evaluation mode.
        loss: the mean loss of a batch, given the numbers of its rows.
        num_rows: N.
        recipe: how.
        rng: of the order: one permutation of all rows after the other, cut into batches without a remainder.

    Raises:
        InputError: the loss is no longer finite, or in the end the weights are not.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=_BETAS)
    network.train()
    for step, rows_B in enumerate(itertools.islice(_batches(num_rows, recipe.batch_size, rng), recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        value = loss(rows_B)
        if not torch.isfinite(value):
            raise _diverged(name, f"the loss of update {step + 1} of {recipe.steps}", recipe, value.item())
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, _LARGEST_GRADIENT)
        optimizer.step()
        yield value.item()
    network.eval()
    for key, tensor in network.state_dict().items():  # the last update has no loss after it that would tell
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise _diverged(name, f"{key} after the {recipe.steps} updates", recipe, "a value that is not")


def _diverged(name: str, what: str, recipe: Recipe, got: object) -> InputError:
    return InputError(f"{name}: {what} must be finite, got {got}: lower learning_rate ({recipe.learning_rate})")


def _batches(num_rows: int, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Batches of one endless sequence of permutations."""
    waiting_N = np.empty(0, dtype=np.int64)
    while True:
        while len(waiting_N) < size:
            waiting_N = np.concatenate([waiting_N, rng.permutation(num_rows)])
        yield waiting_N[:size]
        waiting_N = waiting_N[size:]
