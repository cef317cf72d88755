"""One model on many workers: a copy each (DDP), or a share of every weight each (FSDP2); and its state either way."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_BLOCK_LISTS = ("resblocks", "blocks")
"""What open_clip and timm call the list of a transformer's layers."""


@dataclass(frozen=True)
class Parallel:
    """A model spread over the workers.

    Attributes:
        model: open_clip's module; under FSDP its parameters are shares.
        call: the forward pass.
        local: a context in which gradients are not exchanged yet; None where they always are.
        alone: parameters whose gradients `average_gradients` must see to.
    """

    model: Any
    call: Callable[..., Any]
    local: Any = None
    alone: tuple[nn.Parameter, ...] = ()


def parallelise(model: Any, kind: Literal["ddp", "fsdp"]) -> Parallel:
    """Spreads a model that is on its device."""
    if kind == "fsdp":
        return _shard(model)
    if dist.get_world_size() == 1:
        return Parallel(model, model)
    # Buckets as views of the gradients save a copy of them all.
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    return Parallel(model, wrapped, local=wrapped.no_sync)


def average_gradients(parallel: Parallel) -> None:
    """Averages the gradients that the wrapper leaves to each worker."""
    for parameter in parallel.alone:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def gradient_norm(parallel: Parallel) -> float:
    """The Euclidean norm of the whole gradient, which is no finite number where some of it is none."""
    return math.hypot(*(_norm(parameters) for parameters in _kinds(parallel)))


def clip_gradients(parallel: Parallel, limit: float, norm: float) -> None:
    """Scales the whole gradient, of that norm, down to a limit."""
    for parameters in _kinds(parallel):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))


def mean_over_workers(value: Tensor) -> float:
    """The mean of a scalar over all workers."""
    if dist.get_world_size() > 1:
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return float(value)


def get_state(parallel: Parallel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and optimiser on the CPU, whole, by parameter name. Every worker must call it."""
    model, state = get_state_dict(parallel.model, optimizer, options=_FULL)
    return {"model": dict(model), "optimizer": dict(state)}


def get_weights(parallel: Parallel) -> dict[str, Tensor]:
    """The weights on the CPU, whole, by name. Every worker must call it."""
    weights: dict[str, Any] = get_model_state_dict(parallel.model, options=_FULL)
    return weights


def set_state(parallel: Parallel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `get_state`, for any number of workers."""
    set_state_dict(
        parallel.model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_FULL,
    )


def _kinds(parallel: Parallel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that are shared out, or that all are copies, and those that are not; no operation mixes them."""
    alone = {id(parameter) for parameter in parallel.alone}
    return [p for p in parallel.model.parameters() if id(p) not in alone], list(parallel.alone)


def _norm(parameters: list[nn.Parameter]) -> float:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _shard(model: Any) -> Parallel:
    # Scalars cannot be shared out.
    alone = tuple(parameter for parameter in model.parameters() if parameter.ndim == 0)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _BLOCK_LISTS:
            for block in module:
                fully_shard(block)
    fully_shard(model, ignored_params=set(alone))
    return Parallel(model, model, alone=alone)
