"""Selections held against each other: accuracies by seed, and differences with their intervals.

A difference has two intervals. The one over seeds (Student's t, paired by seed) says what other seeds might give; the
one over samples (bootstrap, both sides drawn alike, outcomes of all seeds) what another test set might give.

Legend: S seeds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from operators.evaluation.intervals import Estimate, Metric, paired_bootstrap, paired_t_interval
from pipeline.comparison.results import FEW_SEEDS, Accuracy, Difference, Interval, TaskVerdict
from pipeline.comparison.selections import Selected
from pipeline.comparison.settings import Comparison
from pipeline.comparison.trainings import Key
from pipeline.evaluation.results import Result, draws, load_outcomes
from pipeline.spread import spread
from pipeline.storage import Store, digest
from pipeline.training.trainer import TrainingResult

DIFFERENCES_VERSION = 1


@dataclass(frozen=True)
class Contrast:
    """A difference to be measured: results of both sides by seed, in the same order; a mean where one side is none."""

    ours: str
    theirs: str
    our_results: tuple[Result, ...]
    their_results: tuple[Result, ...]


def judge(
    config: Comparison,
    selections: Sequence[Selected],
    results: Mapping[Key, Sequence[Result]],
    store: Store,
    workers: int,
) -> list[TaskVerdict]:
    """Holds the selections against each other on every task.

    Args:
        config: of the job.
        selections: in order.
        results: of each model, in the order of the tasks.
        store: the workspace of the evaluation.
        workers: CPU workers.
    """
    tasks = range(len(next(iter(results.values()))))
    by_task = [{key: found[number] for key, found in results.items()} for number in tasks]
    compared = pairs(config.against, selections)
    return [_judge_task(config, compared, found, store, workers) for found in by_task]


def pairs(baseline: str, selections: Sequence[Selected]) -> list[tuple[str, str]]:
    """Which are compared: each with the baseline, and with a random one, that of its size if there is one."""
    randoms = {selected.like: selected.name for selected in selections if selected.like}
    found = [(selected.name, baseline) for selected in selections]
    for selected in selections:
        if not selected.like and randoms:
            found.append((selected.name, randoms.get(selected.name, next(iter(randoms.values())))))
    return [pair for pair in dict.fromkeys(found) if pair[0] != pair[1]]


def warnings(
    selections: Sequence[Selected], verdicts: Sequence[TaskVerdict], trained: Iterable[TrainingResult]
) -> list[str]:
    """What someone should look at: what selections brought along, costs out of line, scores that prove nothing."""
    found = [warning for selected in selections for warning in selected.warnings]
    return [*found, *costs(selections, trained), *hollow_scores(selections, verdicts)]


def costs(selections: Sequence[Selected], trained: Iterable[TrainingResult]) -> Iterator[str]:
    """Names the steps that took longer than a training on what they select: filtering has to pay for itself.

    Of each selection its own steps only: reading and embedding the pool serves others, too.
    """
    usual = median([result.seconds for result in trained])
    for selected in selections:
        for title in selected.titles:
            if (seconds := selected.seconds.get(title, 0.0)) > usual:
                yield (
                    f"selections.{selected.name}: {title} took {seconds:.0f} s, longer than the {usual:.0f} s of a "
                    "training on what is selected: its cost is out of line with what it serves."
                )


def hollow_scores(selections: Sequence[Selected], verdicts: Sequence[TaskVerdict]) -> list[str]:
    """Names the scores that rose while accuracy fell.

    A filter whose scores are high and whose set is no better than a random one has learnt something else than quality
    (Fang et al. 2023, arXiv 2309.17425, sections 1 and 4).
    """
    found = []
    randoms = [selected.name for selected in selections if selected.like]
    for selected in selections:
        risen = [(title, score) for title, score in selected.scores.items() if score.kept > score.pool]
        for verdict in verdicts if risen else []:
            for worse in (verdict.difference(selected.name, name) for name in randoms):
                if worse is None or worse.value >= 0:
                    continue
                title, score = risen[0]
                sure = "its intervals are clear of zero" if worse.clear else "which may be chance"
                found.append(
                    f"selections.{selected.name}: {title} rose from {score.pool:.4g} to {score.kept:.4g}, and yet "
                    f"{verdict.metric} on {verdict.task} is {-worse.value:.4f} below {worse.theirs}'s ({sure}): high "
                    "scores are no proof of a good filter."
                )
    return found


def at_chance(results: Iterable[Sequence[Result]]) -> Iterator[str]:
    """Names the tasks on which all models do as someone who guesses: no selection can be told from another there.

    One model in ten may be clear of chance by luck.

    Args:
        results: of each model.
    """
    by_task: dict[str, list[Result]] = {}
    for result in (result for found in results for result in found):
        by_task.setdefault(result.key, []).append(result)
    for key, found in by_task.items():
        chance, classes = found[0].chance, found[0].num_classes
        clear = [result for result in found if result.interval and result.interval[0] > (chance or 0)]
        if chance is not None and len(clear) <= len(found) / 10:
            yield (
                f"{key}: all models are at chance ({found[0].metric} of a guess among {classes} classes is "
                f"{chance:.4f}), so nothing can be concluded from it: train longer, or on more samples"
            )


def over_tasks(verdicts: Sequence[TaskVerdict], name: str) -> TaskVerdict:
    """The mean over tasks of each model's main metric, held against each other by seed; every model does every task.

    Args:
        verdicts: of the tasks; at least one.
        name: of what is said of them all.

    Returns:
        a verdict without intervals over samples, as the tasks' samples are different ones.
    """
    first = verdicts[0]
    by_name = {
        found.selection: np.mean([verdict.of(found.selection).values for verdict in verdicts], axis=0).tolist()
        for found in first.accuracies
    }
    differences = []
    for pair in first.differences:
        found = paired_t_interval(by_name[pair.ours], by_name[pair.theirs])
        differences.append(Difference(pair.ours, pair.theirs, found.value, _bounded(found), None))
    metrics = dict.fromkeys(verdict.metric for verdict in verdicts)
    return TaskVerdict(
        task=name,
        metric=next(iter(metrics)) if len(metrics) == 1 else "main metric",
        num_samples=sum(verdict.num_samples for verdict in verdicts),
        accuracies=tuple(accuracy(name, values) for name, values in by_name.items()),
        differences=tuple(differences),
    )


def _judge_task(
    config: Comparison,
    compared: Sequence[tuple[str, str]],
    results: Mapping[Key, Result],
    store: Store,
    workers: int,
) -> TaskVerdict:
    def of(name: str) -> tuple[Result, ...]:
        return tuple(results[name, seed] for seed in config.seeds)

    contrasts = [Contrast(ours, theirs, of(ours), of(theirs)) for ours, theirs in compared]
    alone = [Contrast(name, "", of(name), ()) for name in config.selections] if len(config.seeds) <= FEW_SEEDS else []
    measure = partial(_difference, store, config.seed, config.bootstrap)
    found = dict(spread(measure, list(enumerate([*contrasts, *alone])), workers=workers))
    means = {found[number].ours: found[number].over_samples for number in range(len(contrasts), len(found))}
    accuracies = tuple(
        accuracy(name, [result.value for result in of(name)], means.get(name)) for name in config.selections
    )
    any_result = next(iter(results.values()))
    return TaskVerdict(
        task=any_result.key,
        metric=any_result.metric,
        num_samples=any_result.num_samples,
        accuracies=accuracies,
        differences=tuple(found[number] for number in range(len(contrasts))),
    )


def accuracy(name: str, values: Sequence[float], over_samples: Interval = None) -> Accuracy:
    """The mean over seeds, with its interval over seeds, and the one over samples that it is given."""
    estimate = paired_t_interval(values, [0.0] * len(values))
    return Accuracy(name, tuple(values), estimate.value, _bounded(estimate, least=0.0), over_samples)


def _difference(store: Store, seed: int, resamples: int, item: tuple[int, Contrast]) -> tuple[int, Difference]:
    number, contrast = item
    ours, theirs = contrast.our_results, contrast.their_results
    their_values = [result.value for result in theirs] or [0.0] * len(ours)
    over_seeds = paired_t_interval([result.value for result in ours], their_values)
    over_samples = _over_samples(store, seed, resamples, contrast)
    return number, Difference(contrast.ours, contrast.theirs, over_seeds.value, _bounded(over_seeds), over_samples)


def _over_samples(store: Store, seed: int, resamples: int, contrast: Contrast) -> Interval:
    """The interval over test samples, kept under the name of all that it depends on."""
    ours, theirs = contrast.our_results, contrast.their_results
    outcomes = [[(result.outcomes, result.metric) for result in side] for side in (ours, theirs)]
    at = f"differences/{digest(DIFFERENCES_VERSION, outcomes, ours[0].key, seed, resamples)}.json"
    if not store.exists(at):
        mine, other = (mean_metric([load_metric(store, result) for result in side]) for side in (ours, theirs))
        found = paired_bootstrap(mine, other, ours[0].num_samples, draws(seed, ours[0].key), resamples=resamples)
        store.publish_json(at, _bounded(found))
    ends = store.read_json(at)
    return (ends[0], ends[1]) if ends else None


def load_metric(store: Store, result: Result) -> Metric:
    """The main metric of a model's outcomes, as a function of how often each test sample counts."""
    return partial(load_outcomes(store, result).measure, result.metric)


def mean_metric(metrics: Sequence[Callable[[NDArray[np.int64] | None], float]]) -> Metric:
    """The mean over seeds of a metric; 0 of no seeds."""

    def mean(times_N: NDArray[np.int64] | None) -> float:
        return math.fsum(metric(times_N) for metric in metrics) / max(1, len(metrics))

    return mean


def _bounded(estimate: Estimate, least: float = -1.0) -> Interval:
    """The ends, within what a metric (from 0) or a difference of two (from -1) can be."""
    return (max(estimate.low, least), min(estimate.high, 1.0)) if math.isfinite(estimate.low) else None
