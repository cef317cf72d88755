"""What is measured of a classifier, each as a function of how often each sample counts.

The multiplicities are what a bootstrap draws (`operators.evaluation.intervals`); without them each sample counts once.
Classes and groups that no sample belongs to take no part, as in scikit-learn's balanced accuracy and in WILDS.

Legend: N samples, K classes, G groups.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]


def share(correct_N: NDArray[np.bool_], times_N: Ints | None = None) -> float:
    """The share of samples that are correct, in [0, 1]; NaN where there is none."""
    weight_N = _weights(len(correct_N), times_N)
    total = float(weight_N.sum())
    return float(weight_N @ correct_N) / total if total else float("nan")


def mean_per_class_recall(label_N: Ints, prediction_N: Ints, times_N: Ints | None = None) -> float:
    """The mean over the true classes of the share of their samples that were found, in [0, 1]."""
    found_K, true_K, _ = _counts(label_N, prediction_N, times_N)
    there_K = true_K > 0
    return float((found_K[there_K] / true_K[there_K]).mean()) if there_K.any() else float("nan")


def macro_f1(label_N: Ints, prediction_N: Ints, times_N: Ints | None = None) -> float:
    """The mean over the true classes of F1 = 2 hits / (true + predicted), in [0, 1].

    A class that is predicted but never true costs the classes it was mistaken for, and is none itself: so WILDS
    defines the main metric of iWildCam (Koh et al. 2021, arXiv 2012.07421, section 4.1).
    """
    found_K, true_K, predicted_K = _counts(label_N, prediction_N, times_N)
    there_K = true_K > 0
    return float((2 * found_K[there_K] / (true_K + predicted_K)[there_K]).mean()) if there_K.any() else float("nan")


def worst_group(correct_N: NDArray[np.bool_], group_N: Ints, times_N: Ints | None = None) -> float:
    """The smallest share of correct samples among the groups, in [0, 1].

    Args:
        correct_N: whether each sample is.
        group_N: >= 0, the group of each.
        times_N: how often each counts.
    """
    weight_N = _weights(len(group_N), times_N)
    size_G = np.bincount(group_N, weight_N)
    correct_G = np.bincount(group_N, weight_N * correct_N)
    there_G = size_G > 0
    return float((correct_G[there_G] / size_G[there_G]).min()) if there_G.any() else float("nan")


def _counts(label_N: Ints, prediction_N: Ints, times_N: Ints | None) -> tuple[Floats, Floats, Floats]:
    """Hits, true samples and predictions of each class. A prediction of -1 is none."""
    weight_N = _weights(len(label_N), times_N)
    num_classes = int(max(label_N.max(initial=-1), prediction_N.max(initial=-1))) + 1
    made_N = prediction_N >= 0
    found_K = np.bincount(label_N, weight_N * (label_N == prediction_N), num_classes)
    true_K = np.bincount(label_N, weight_N, num_classes)
    predicted_K = np.bincount(prediction_N[made_N], weight_N[made_N], num_classes)
    return cast("tuple[Floats, Floats, Floats]", (found_K, true_K, predicted_K))  # numpy's stubs forget the weights


def _weights(num_samples: int, times_N: Ints | None) -> Floats:
    return np.ones(num_samples) if times_N is None else times_N.astype(np.float64)
