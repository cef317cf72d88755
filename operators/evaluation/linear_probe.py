"""A linear probe: multinomial logistic regression on frozen embeddings.

Minimises mean cross entropy + l2 / 2 * |W|^2 in float64 by L-BFGS from zero, so it repeats on a machine bit for bit.
The bias is free. scikit-learn's C is 1 / (N l2). Where l2 is not given it is the one that classifies most of a fifth of
the training rows, held out, when fitted to the others; among equals the strongest (Radford et al. 2021, arXiv
2103.00020, appendix A.3, sweep it on validation sets).

The fitted rows are scaled to at most unit length and rounded to the 2^-28 grid. That changes no order but between
scores closer than the rounding, and makes the decisions those of `operators.evaluation.zero_shot.classify`: exact.

Legend: N rows, B of a block, K classes, D dimensions, E = D + 1, the last for the bias.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.exact import round_to_grid

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

L2_CANDIDATES = tuple(10.0**exponent for exponent in range(-1, -8, -1))
HELD_OUT = 0.2

_MAX_ITERATIONS = 1000
_CHOOSING_TOLERANCE = 1e-5
_BLOCK_ROWS = 8_192


def with_bias(x_ND: NDArray[np.float16]) -> NDArray[np.float16]:
    """The rows with a 1 behind them: x_NE."""
    return np.concatenate([x_ND, np.ones((len(x_ND), 1), np.float16)], axis=1)


def fit(
    x_NE: NDArray[np.float16],
    label_N: Ints,
    num_classes: int,
    l2: float,
    start_KE: Floats | None = None,
    tolerance: float = 1e-7,
) -> Floats:
    """The weights that minimise the loss: weights_KE, float64.

    Args:
        x_NE: `with_bias` of stored rows.
        label_N: in [0, K).
        num_classes: K.
        l2: > 0.
        start_KE: where to start from; zero unless given.
        tolerance: of the largest entry of the gradient, at which it stops.
    """
    from scipy.optimize import minimize  # takes half a second, which no check of a config should pay

    x = x_NE.astype(np.float64)
    shape = (num_classes, x.shape[1])
    start_KE = np.zeros(shape) if start_KE is None else start_KE
    found = minimize(
        _loss,
        start_KE.ravel(),
        args=(x, label_N, shape, l2),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _MAX_ITERATIONS, "gtol": tolerance, "ftol": 0.0},
    )
    weights_KE: Floats = found.x.reshape(shape)
    return weights_KE


def choose_l2(
    x_NE: NDArray[np.float16],
    label_N: Ints,
    num_classes: int,
    rng: np.random.Generator,
    candidates: Sequence[float] = L2_CANDIDATES,
) -> float:
    """The candidate that does best on held-out rows, the strongest among equals.

    Args:
        x_NE: `with_bias` of stored rows; at least two.
        label_N: in [0, K).
        num_classes: K.
        rng: draws the rows that are held out.
        candidates: > 0.

    Raises:
        InputError: there are fewer than two rows.
    """
    if len(x_NE) < 2:
        raise InputError(f"l2 must be given where fewer than two samples train the probe, got {len(x_NE)}")
    held_out = max(1, round(HELD_OUT * len(x_NE)))
    order_N = rng.permutation(len(x_NE))
    held_N, fitted_N = order_N[:held_out], order_N[held_out:]
    held_NE = x_NE[held_N].astype(np.float64)
    weights_KE = None
    best = (-1.0, 0.0)
    for l2 in sorted(candidates, reverse=True):
        weights_KE = fit(x_NE[fitted_N], label_N[fitted_N], num_classes, l2, weights_KE, _CHOOSING_TOLERANCE)
        hits = float(((held_NE @ weights_KE.T).argmax(axis=1) == label_N[held_N]).mean())
        best = max(best, (hits, l2))  # of equal hits the larger, which came first
    return best[1]


def to_grid(weights_KE: Floats) -> Floats:
    """The weights as `classify` takes them: scaled by a power of two, so that no row is longer than 1, and rounded."""
    longest = float(np.sqrt(np.square(weights_KE).sum(axis=1)).max())
    _, exponent = np.frexp(longest)
    return round_to_grid(np.ldexp(weights_KE, -int(exponent)))


def _loss(flat: Floats, x_NE: Floats, label_N: Ints, shape: tuple[int, int], l2: float) -> tuple[float, Floats]:
    """The loss and its gradient, a block of rows after the other: the scores of all would be N x K numbers."""
    weights_KE = flat.reshape(shape)
    penalised_KE = weights_KE.copy()
    penalised_KE[:, -1] = 0.0
    loss, gradient_KE = l2 / 2 * float(np.square(penalised_KE).sum()), l2 * penalised_KE
    for start in range(0, len(x_NE), _BLOCK_ROWS):
        x_BE, label_B = x_NE[start : start + _BLOCK_ROWS], label_N[start : start + _BLOCK_ROWS]
        rows_B = np.arange(len(x_BE))
        logit_BK = x_BE @ weights_KE.T
        logit_BK -= logit_BK.max(axis=1, keepdims=True)
        own_B = logit_BK[rows_B, label_B]
        np.exp(logit_BK, out=logit_BK)
        sum_B = logit_BK.sum(axis=1)
        loss += float((np.log(sum_B) - own_B).sum()) / len(x_NE)
        logit_BK /= sum_B[:, None]
        logit_BK[rows_B, label_B] -= 1.0
        gradient_KE += logit_BK.T @ x_BE / len(x_NE)
    return loss, gradient_KE.ravel()
