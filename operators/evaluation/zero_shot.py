"""Zero-shot classification: a class is the mean of what the text tower says of its prompts.

Every decision is exact. Class weights are multiples of 2^-28 and stored rows multiples of 2^-24, so a float64 dot
product of the two is never rounded (`operators.embeddings` has the argument), and the same class wins on any machine;
among equals the one of the lowest number. The scale of the logits is left out, as it changes no order.

Radford et al. 2021, arXiv 2103.00020, section 3.1.4 (prompt ensembles in embedding space).

Legend: N rows, B rows of a block, K classes, T templates, D dimensions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError, ModelError
from operators.kmeans import unit_rows

PLACEHOLDER = "{c}"
"""Where a template wants the name of the class, as DataComp writes it."""

_BLOCK_ROWS = 4096


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The K x T prompts, those of a class together.

    Raises:
        InputError: a template has no place for the class.
    """
    for template in templates:
        if PLACEHOLDER not in template:
            raise InputError(f"a template must hold {PLACEHOLDER} where the class goes, got {template!r}")
    return [template.replace(PLACEHOLDER, name) for name in classes for template in templates]


def class_weights(prompts_PD: NDArray[np.float16], classes: Sequence[str]) -> NDArray[np.float64]:
    """One unit row for each class: the direction of the sum of its prompts' unit rows.

    Args:
        prompts_PD: stored rows of `class_prompts`, P = K x T.
        classes: their names, for the message.

    Returns:
        weights_KD: float64 unit rows on the 2^-28 grid.

    Raises:
        ModelError: the prompts of a class cancel out.
    """
    sums_KD = prompts_PD.reshape(len(classes), -1, prompts_PD.shape[1]).astype(np.float64).sum(axis=1)
    for name, sum_D in zip(classes, sums_KD, strict=True):
        if not sum_D.any():
            raise ModelError(f"text tower must give each class a direction, got prompts that cancel out for {name!r}")
    return unit_rows(sums_KD)


def classify(
    x_ND: NDArray[np.float16],
    weights_KD: NDArray[np.float64],
    label_N: NDArray[np.int64],
    present_N: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The best class of each row, and how its true class did.

    Args:
        x_ND: stored rows.
        weights_KD: float64, on the 2^-28 grid and no longer than 1; K >= 1.
        label_N: the true classes, in [0, K).
        present_N: False for rows that the model could not embed: they are wrong, whatever their label. None: all True.

    Returns:
        prediction_N: int32 in [0, K); -1 where not present.
        rank_N: int32, how many classes come before the true one, 0 for a hit; K where not present.
    """
    assert x_ND.dtype == np.float16, x_ND.dtype
    num_classes = len(weights_KD)
    prediction_N = np.empty(len(x_ND), np.int32)
    rank_N = np.empty(len(x_ND), np.int32)
    for start in range(0, len(x_ND), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        score_BK = x_ND[block].astype(np.float64) @ weights_KD.T
        own_B1 = np.take_along_axis(score_BK, label_N[block, None], axis=1)
        ahead_BK = (score_BK > own_B1) | ((score_BK == own_B1) & (np.arange(num_classes) < label_N[block, None]))
        prediction_N[block] = score_BK.argmax(axis=1)
        rank_N[block] = ahead_BK.sum(axis=1)
    if present_N is not None:
        prediction_N[~present_N] = -1
        rank_N[~present_N] = num_classes
    return prediction_N, rank_N
