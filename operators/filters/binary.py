"""A binary classifier on frozen embeddings: trusted rows against rows of the pool.

One of the filters of Fang et al. 2023 (arXiv 2309.17425, Table 1, "binary classifier"), as logistic regression.

The regression is solved to the floor of float64, and the solution is then rounded to a grid so coarse that the logit of
a stored row is exact in any order of summation (`operators.embeddings` has the argument): scores are the same numbers
on every machine, for any batch. Rounding moves a weight by 2^-28 of their norm at most.

Legend: N rows, P of them positive, Q negative, B rows of a block, D dimensions, E = D + 1 parameters, the bias last.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Stored = NDArray[np.float16]

_BLOCK_ROWS = 8_192
_MOST_UPDATES = 100
_MOST_HALVINGS = 30
_FLOOR = 1e-14
"""Of the gradient of a mean of terms that are about 1: what float64 still tells from zero."""


@dataclass(frozen=True)
class LinearClassifier:
    """What tells trusted rows from others.

    Attributes:
        weights_D: float64, on a grid that makes logits exact.
        bias: on the same grid.
    """

    weights_D: Floats
    bias: float


def fit_classifier(positive_PD: Stored, negative_QD: Stored, l2: float) -> LinearClassifier:
    """Minimises the mean logistic loss of all rows + l2 / 2 |weights|^2; the bias is not held back.

    Newton's method; a step is halved until the gradient shrinks, which from anywhere leads to the one minimum.
    scikit-learn's `LogisticRegression` has the same minimum for C = 1 / (l2 (P + Q)).

    Args:
        positive_PD: float16 unit rows, or two unit rows side by side; P >= 1.
        negative_QD: the same of the others; Q >= 1.
        l2: greater than 0, so that separable rows have a minimum, too.
    """
    parameters_E = np.zeros(positive_PD.shape[1] + 1)
    gradient_E, hessian_EE = _derivatives(positive_PD, negative_QD, parameters_E, l2)
    for _ in range(_MOST_UPDATES):
        step_E = np.linalg.solve(hessian_EE, gradient_E)
        for _ in range(_MOST_HALVINGS):
            trial_E = parameters_E - step_E
            trial_gradient_E, trial_hessian_EE = _derivatives(positive_PD, negative_QD, trial_E, l2)
            if np.linalg.norm(trial_gradient_E) < np.linalg.norm(gradient_E):
                break
            step_E = step_E / 2
        else:
            break
        parameters_E, gradient_E, hessian_EE = trial_E, trial_gradient_E, trial_hessian_EE
        if np.abs(gradient_E).max() <= _FLOOR:
            break
    rounded_E = _rounded(parameters_E)
    return LinearClassifier(rounded_E[:-1], float(rounded_E[-1]))


def logits(classifier: LinearClassifier, x_ND: Stored) -> Floats:
    """Logit_N: how much each row looks like a trusted one; above 0 where that is the likelier. Exact."""
    return x_ND.astype(np.float64) @ classifier.weights_D + classifier.bias


def balanced_accuracy(positive_P: Floats, negative_Q: Floats) -> float:
    """Half the share of positive rows with a logit above 0, and half that of the others without."""
    return float(((positive_P > 0).mean() + (negative_Q <= 0).mean()) / 2)


def _derivatives(positive_PD: Stored, negative_QD: Stored, parameters_E: Floats, l2: float) -> tuple[Floats, Floats]:
    """Gradient_E and hessian_EE of the objective."""
    count = len(positive_PD) + len(negative_QD)
    penalty_E = np.append(np.full(len(parameters_E) - 1, l2), 0.0)
    gradient_E, hessian_EE = penalty_E * parameters_E, np.diag(penalty_E)
    for rows_XD, sign in ((positive_PD, 1.0), (negative_QD, -1.0)):
        for x_BE in _blocks(rows_XD):
            miss_B = _sigmoid(-sign * (x_BE @ parameters_E))  # the probability of the other side
            gradient_E -= sign * (miss_B @ x_BE) / count
            hessian_EE += (x_BE.T * (miss_B * (1.0 - miss_B))) @ x_BE / count
    return gradient_E, hessian_EE


def _blocks(x_ND: Stored) -> Iterator[Floats]:
    """Rows in float64 with a 1 for the bias, a block at a time."""
    for start in range(0, len(x_ND), _BLOCK_ROWS):
        block_BD = x_ND[start : start + _BLOCK_ROWS]
        yield np.concatenate([block_BD.astype(np.float64), np.ones((len(block_BD), 1))], axis=1)


def _sigmoid(logit_B: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * logit_B))


def _rounded(parameters_E: Floats) -> Floats:
    """The parameters on the finest grid on which no logit of a stored row needs more than 53 bits.

    Stored numbers are multiples of 2^-24 and their rows shorter than 2, also two side by side. So with 2^e above
    2 |weights| + |bias|, parameters that are multiples of 2^(e - 29) make every partial sum a multiple of 2^(e - 53)
    below 2^e.
    """
    bound = 2.0 * np.linalg.norm(parameters_E[:-1]) + abs(parameters_E[-1])
    grid = 2.0 ** (int(np.frexp(bound)[1]) - 29)
    return np.round(parameters_E / grid) * grid
