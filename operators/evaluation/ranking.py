"""How well a score tells two kinds of samples apart, whatever its threshold.

Legend: N samples.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def roc_auc(positive_N: NDArray[np.bool_], score_N: NDArray[np.floating[Any]]) -> float:
    """The area under the ROC curve: how often a positive sample scores higher than a negative one; ties count half.

    Args:
        positive_N: which samples should score high.
        score_N: finite.

    Returns:
        in [0, 1], 0.5 for a score that knows nothing; NaN where all samples are of one kind.

    Notes:
        The statistic of Mann and Whitney (1947), from the sum of the positives' ranks.
    """
    from scipy.stats import rankdata  # takes half a second, which no check of a config should pay

    positives = int(np.count_nonzero(positive_N))
    negatives = len(positive_N) - positives
    if not positives or not negatives:
        return float("nan")
    above = float(rankdata(score_N)[positive_N].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)
