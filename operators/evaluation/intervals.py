"""How sure one can be of a number: percentile bootstraps over samples, and a paired t interval over seeds.

A metric is a function of how often each sample counts. A bootstrap draws the N samples with replacement, many times,
and gives the quantiles of what the metric makes of each draw (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). For two models on the same samples, both metrics see the same draw: what they have in common, such as
hard samples, cancels out of the difference.

Legend: N samples, R draws, S seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[np.int64] | None], float]
"""What a metric is of multiplicities; None counts each sample once."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
        value: of all samples, each once; of seeds, the mean.
        low, high: the ends of the interval.
    """

    value: float
    low: float
    high: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def bootstrap(
    metric: Metric, num_samples: int, rng: np.random.Generator, *, resamples: int = 1000, confidence: float = 0.95
) -> Estimate:
    """A metric with its percentile bootstrap interval.

    Args:
        metric: to be measured. Draws for which it is NaN are left out.
        num_samples: N >= 1.
        rng: of a key that names the task and not the model, so that models see the same draws.
        resamples: R >= 1.
        confidence: of the interval, in (0, 1).
    """
    draws = (rng.integers(0, num_samples, num_samples) for _ in range(resamples))
    drawn_R = [metric(np.bincount(draw_N, minlength=num_samples)) for draw_N in draws]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(drawn_R, [tail, 1 - tail])
    return Estimate(metric(None), float(low), float(high))


def paired_bootstrap(
    ours: Metric,
    theirs: Metric,
    num_samples: int,
    rng: np.random.Generator,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Estimate:
    """The difference `ours - theirs` of two models on the same samples, with its interval; see `bootstrap`."""

    def difference(times_N: NDArray[np.int64] | None) -> float:
        return ours(times_N) - theirs(times_N)

    return bootstrap(difference, num_samples, rng, resamples=resamples, confidence=confidence)


def paired_t_interval(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean difference over seeds, with Student's t interval: what another seed of training might give.

    Args:
        ours: a number for each seed.
        theirs: the other's, for the same seeds in the same order.
        confidence: in (0, 1).

    Returns:
        an interval without bounds where there are fewer than two seeds.
    """
    from scipy import stats  # takes half a second, which no check of a config should pay

    difference_S = np.subtract(ours, theirs)
    assert len(difference_S) == len(ours) == len(theirs), (len(ours), len(theirs))
    mean = float(difference_S.mean())
    if len(difference_S) < 2:
        return Estimate(mean, -np.inf, np.inf)
    error = float(difference_S.std(ddof=1)) / np.sqrt(len(difference_S))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(difference_S) - 1) * error)
    return Estimate(mean, mean - reach, mean + reach)
