"""The area under the ROC curve by hand, against counting pairs, and of scores that know nothing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.evaluation.ranking import roc_auc


def test_by_hand():
    positive_N = np.array([True, False, True, False])
    assert roc_auc(positive_N, np.array([0.9, 0.1, 0.4, 0.6])) == 3 / 4
    assert roc_auc(positive_N, np.array([0.5, 0.5, 0.5, 0.5])) == 1 / 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_it_counts_the_pairs_in_order(samples):
    positive_N, score_N = (np.array(column) for column in zip(*samples, strict=True))
    pairs = [(p > n) + (p == n) / 2 for p in score_N[positive_N] for n in score_N[~positive_N]]
    auc = roc_auc(positive_N, score_N.astype(float))
    assert auc == pytest.approx(np.mean(pairs)) if pairs else math.isnan(auc)
