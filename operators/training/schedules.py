"""How the learning rate goes: up in a straight line, then by one of three shapes."""

import math
from typing import Literal

Shape = Literal["cosine", "constant", "cooldown"]


def learning_rate(
    step: int,
    *,
    peak: float,
    num_steps: int,
    warmup_steps: int = 0,
    shape: Shape = "cosine",
    cooldown_steps: int = 0,
    final: float = 0.0,
) -> float:
    """The learning rate of one step.

    Args:
        step: from 0 to num_steps - 1.
        peak: reached by the last step of the warm-up.
        num_steps: of the whole training.
        warmup_steps: the first of them, which rise in a straight line from peak / warmup_steps.
        shape: `cosine` falls to `final` by half a cosine, `constant` stays, `cooldown` stays and then falls in a
            straight line over the last `cooldown_steps`.
        cooldown_steps: of shape `cooldown`.
        final: what the falling shapes would reach at step num_steps.

    Notes:
        The same values as open_clip's schedules of these names.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    match shape:
        case "constant":
            return peak
        case "cosine":
            done = (step - warmup_steps) / (num_steps - warmup_steps)
            return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2
        case "cooldown":
            left = min(1.0, (num_steps - step) / cooldown_steps) if cooldown_steps else 1.0
            return final + (peak - final) * left
