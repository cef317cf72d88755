"""The linear probe against scikit-learn, its own gradient, and by its choice of l2."""

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression

from operators.embeddings import to_unit_float16
from operators.errors import InputError
from operators.evaluation import linear_probe
from operators.evaluation.linear_probe import _loss, choose_l2, fit, to_grid, with_bias
from operators.evaluation.zero_shot import classify


def lumps(rows=300, dims=8, classes=4, noise=0.8, seed=0):
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, classes, rows)
    centres_KD = rng.standard_normal((classes, dims))
    return to_unit_float16(centres_KD[label_N] + noise * rng.standard_normal((rows, dims)))[0], label_N


def test_the_gradient_is_that_of_the_loss_and_blocks_change_nothing(monkeypatch):
    x_ND, label_N = lumps(20, 3, 3)
    args = with_bias(x_ND).astype(np.float64), label_N, (3, 4), 0.1
    point = np.random.default_rng(1).standard_normal(12)
    assert check_grad(lambda w: _loss(w, *args)[0], lambda w: _loss(w, *args)[1], point) < 1e-5
    whole = _loss(point, *args)
    monkeypatch.setattr(linear_probe, "_BLOCK_ROWS", 7)
    blocks = _loss(point, *args)
    assert blocks[0] == pytest.approx(whole[0], rel=1e-14)
    np.testing.assert_allclose(blocks[1], whole[1], rtol=1e-12)


@pytest.mark.parametrize("l2", [0.1, 1e-3])
def test_it_finds_what_scikit_learn_finds(l2):
    x_ND, label_N = lumps()
    weights_KE = fit(with_bias(x_ND), label_N, 4, l2)
    theirs = LogisticRegression(C=1 / (l2 * len(x_ND)), tol=1e-10, max_iter=10_000).fit(
        x_ND.astype(np.float64), label_N
    )
    np.testing.assert_allclose(weights_KE[:, :-1], theirs.coef_, atol=1e-4)
    expected_NK = theirs.predict_proba(x_ND.astype(np.float64))
    logit_NK = with_bias(x_ND).astype(np.float64) @ weights_KE.T
    ours_NK = np.exp(logit_NK) / np.exp(logit_NK).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours_NK, expected_NK, atol=1e-4)
    prediction_N, _ = classify(with_bias(x_ND), to_grid(weights_KE), label_N)
    np.testing.assert_array_equal(prediction_N, theirs.predict(x_ND.astype(np.float64)))


def test_it_repeats_and_starts_from_anywhere():
    x_ND, label_N = lumps()
    weights_KE = fit(with_bias(x_ND), label_N, 4, 1e-2)
    np.testing.assert_array_equal(fit(with_bias(x_ND), label_N, 4, 1e-2), weights_KE)
    warm_KE = fit(with_bias(x_ND), label_N, 4, 1e-2, fit(with_bias(x_ND), label_N, 4, 1.0))
    np.testing.assert_allclose(warm_KE[:, :-1], weights_KE[:, :-1], atol=1e-4)


def test_weights_on_the_grid_keep_their_order():
    weights_KE = np.array([[30.0, -4.0], [0.5, 100.0]])
    grid_KE = to_grid(weights_KE)
    np.testing.assert_array_equal(grid_KE, weights_KE / 128)
    assert np.square(grid_KE).sum(axis=1).max() <= 1


def test_l2_is_chosen_on_held_out_rows_and_the_strongest_among_equals():
    x_ND, label_N = lumps(noise=3.0)
    chosen = choose_l2(with_bias(x_ND), label_N, 4, np.random.default_rng(0), [10.0, 1e-3, 1e-9])
    assert chosen == choose_l2(with_bias(x_ND), label_N, 4, np.random.default_rng(0), [1e-9, 10.0, 1e-3])
    easy_ND, label_N = lumps(noise=0.0)
    assert choose_l2(with_bias(easy_ND), label_N, 4, np.random.default_rng(0), [1e-4, 1e-3, 1e-9]) == 1e-3
    with pytest.raises(InputError, match=r"fewer than two samples train the probe, got 1"):
        choose_l2(with_bias(x_ND[:1]), label_N[:1], 4, np.random.default_rng(0))
