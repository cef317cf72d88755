"""The classifier on embeddings, against scikit-learn and with exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from operators.embeddings import to_unit_float16
from operators.filters.binary import LinearClassifier, balanced_accuracy, fit_classifier, logits


def rows(count: int, shift: float, dims: int = 16, seed: int = 0) -> np.ndarray:
    """Unit rows about a direction that is more pronounced the larger the shift."""
    return to_unit_float16(np.random.default_rng(seed).standard_normal((count, dims)) + shift)[0]


@pytest.mark.parametrize("l2", [1e-4, 1e-2])
@pytest.mark.parametrize(("trusted", "others"), [(200, 200), (50, 400)])
def test_the_weights_are_those_of_scikit_learn(trusted, others, l2):
    positive, negative = rows(trusted, 0.4), rows(others, 0.0, seed=1)
    found = fit_classifier(positive, negative, l2)
    both, labels = np.concatenate([positive, negative]).astype(float), np.arange(trusted + others) < trusted
    oracle = LogisticRegression(C=1 / (l2 * len(both)), solver="newton-cholesky", tol=1e-13, max_iter=1000)
    oracle.fit(both, labels)
    np.testing.assert_allclose(found.weights_D, oracle.coef_[0], atol=1e-6)
    assert found.bias == pytest.approx(oracle.intercept_[0], abs=1e-6)


def test_separable_rows_have_a_minimum_and_an_auc_of_one():
    positive, negative = rows(100, 2.0), rows(100, -2.0, seed=1)
    found = fit_classifier(positive, negative, 1e-4)
    scores = np.concatenate([logits(found, positive), logits(found, negative)])
    assert roc_auc_score(np.arange(200) < 100, scores) == 1.0
    assert np.isfinite(found.weights_D).all()
    assert balanced_accuracy(scores[:100], scores[100:]) == 1.0


def test_rows_that_overlap_are_told_apart_as_well_as_they_can_be():
    found = fit_classifier(rows(500, 0.6), rows(500, 0.0, seed=1), 1e-4)
    fresh = np.concatenate([logits(found, rows(500, 0.6, seed=2)), logits(found, rows(500, 0.0, seed=3))])
    assert roc_auc_score(np.arange(1000) < 500, fresh) > 0.95


def test_a_logit_is_exact_whatever_the_order_of_its_terms():
    found = fit_classifier(rows(60, 0.5), rows(60, 0.0, seed=1), 1e-4)
    x_ND = rows(20, 0.2, seed=4)
    for x_D, logit in zip(x_ND.astype(float), logits(found, x_ND), strict=True):
        exact = sum(Fraction(x) * Fraction(w) for x, w in zip(x_D, found.weights_D, strict=True)) + Fraction(found.bias)
        assert Fraction(float(logit)) == exact
    shuffled = np.random.default_rng(0).permutation(x_ND.shape[1])
    other = LinearClassifier(found.weights_D[shuffled], found.bias)
    assert np.array_equal(logits(other, x_ND[:, shuffled]), logits(found, x_ND))


def test_the_order_of_the_rows_does_not_matter():
    positive, negative = rows(300, 0.4), rows(300, 0.0, seed=1)
    order = np.random.default_rng(1).permutation(300)
    found, other = fit_classifier(positive, negative, 1e-4), fit_classifier(positive[order], negative[order], 1e-4)
    assert np.array_equal(found.weights_D, other.weights_D)
    assert found.bias == other.bias


def test_rows_that_are_all_alike_give_the_share_of_the_trusted():
    same = np.zeros((4, 3), np.float16)
    same[:, 0] = 1
    found = fit_classifier(same[:3], same[:1], 1e-2)
    assert logits(found, same[:1])[0] == pytest.approx(np.log(3), abs=1e-6)
