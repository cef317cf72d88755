"""Running a comparison: every selection made, a model trained on each with each seed, all of them evaluated."""

from collections.abc import Mapping, Sequence
from functools import partial

from operators.encoders.settings import OpenClipSettings
from pipeline.comparison.page import write_page
from pipeline.comparison.results import ComparisonResult, SelectionFacts, Trained, write_comparison
from pipeline.comparison.selections import Selected, Selecting, evaluation_sources, select
from pipeline.comparison.settings import Comparison
from pipeline.comparison.trainings import Key, models, train_all, training
from pipeline.comparison.verdict import at_chance, judge, over_tasks, warnings
from pipeline.comparison.workspace import check_workspace, places, replaced
from pipeline.curate import check as check_curation
from pipeline.engine import engine
from pipeline.evaluation.evaluate import check as check_evaluation
from pipeline.evaluation.evaluate import evaluate, expand
from pipeline.evaluation.results import Result
from pipeline.evaluation.settings import Evaluation
from pipeline.pool import Shard
from pipeline.progress import Progress, open_progress
from pipeline.quarantine import rebuilding
from pipeline.shared_disk import check_shared
from pipeline.status.write import working
from pipeline.training.trainer import TrainingResult
from pipeline.training.trainer import check as check_training


def run_comparison(config: Comparison, address: str | None = None) -> ComparisonResult:
    """Checks a config, starts or joins Ray, and compares. Raises as `check` and `compare` do."""
    shards = check(config)
    with engine(config.resources, address) as workers, open_progress() as progress:
        check_shared(config.store)
        return compare(config, shards, workers=workers, progress=progress)


def check(config: Comparison) -> list[Shard]:
    """Checks what can be known before any work, of all that will be run.

    Returns:
        the pool's shards, sorted by name.

    Raises:
        UserError: what is wrong and what to change.
    """
    check_workspace(config)
    check_training(training(config, config.against, config.seeds[0]))
    untrained = {"trained": config.training.model.as_encoder(0)}
    evaluation = _evaluation(config, untrained)
    check_evaluation(evaluation)
    sources = evaluation_sources(expand(evaluation))
    shards: list[Shard] = []
    for name in config.selections:
        shards = check_curation(config.curation(name, sources), dry=bool(shards))
    return shards


def compare(config: Comparison, shards: Sequence[Shard], *, workers: int, progress: Progress) -> ComparisonResult:
    """Compares the selections of a checked config on a Ray that is up.

    Returns:
        what was found; also written into the workspace, as `comparison.json` and `comparison.html`.

    Raises:
        UserError, LimitExceeded, TrainingDiverged: what was finished until then is found again by a later run.
    """
    config = config.resolved()
    with working(config.store, "compare", progress) as progress:
        if note := replaced(config):
            progress.note(f"compare: {note}")
        tasks = expand(_evaluation(config, {"trained": config.training.model.as_encoder(0)}))
        selecting = Selecting(config, shards, evaluation_sources(tasks), workers, progress)
        selections = rebuilding(config.store, progress, workers, partial(select, selecting))
        trained = train_all(config, selections, workers=workers, progress=progress)
        named = {f"{name}-{seed}": model for (name, seed), model in models(config, trained).items()}
        evaluation = _evaluation(config, named)
        results = by_model(trained, evaluate(evaluation, workers=workers, progress=progress))
        verdicts = judge(config, selections, results, evaluation.store, workers)
        found = ComparisonResult(
            workspace=config.store.url,
            baseline=config.against,
            seeds=config.seeds,
            samples_seen=next(iter(trained.values())).samples_seen,
            selections=tuple(_facts(selected) for selected in selections),
            tasks=tuple(verdicts),
            trained=tuple(_trained(key, result) for key, result in trained.items()),
            warnings=(*warnings(selections, verdicts, trained.values()), *at_chance(results.values())),
            pool=places(config.pool),
            mean=over_tasks(verdicts, f"mean over {len(verdicts)} tasks") if len(verdicts) > 1 else None,
            reused=all(part.reused for part in trained.values())
            and all(result.reused for some in results.values() for result in some),
        )
        write_page(config.store, found, write_comparison(config.store, found))
    return found


def by_model(trained: Mapping[Key, TrainingResult], results: Sequence[Result]) -> dict[Key, list[Result]]:
    """The results of each model, in the order of the tasks."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.model, []).append(result)
    return {(name, seed): found[f"{name}-{seed}"] for name, seed in trained}


def _evaluation(config: Comparison, named: Mapping[str, OpenClipSettings]) -> Evaluation:
    """In a folder of its own, as it writes results and a summary of its own."""
    return Evaluation(
        workspace=f"{config.store.url.rstrip('/')}/evaluation",
        storage=config.storage,
        models=dict(named),
        tasks=config.evaluation,
        bootstrap=config.bootstrap,
        seed=config.seed,
        resources=config.resources,
    )


def _facts(selected: Selected) -> SelectionFacts:
    same = ("name", "kinds", "like", "samples", "scores", "seconds", "diversity")
    return SelectionFacts(**{name: getattr(selected, name) for name in same})


def _trained(key: Key, result: TrainingResult) -> Trained:
    return Trained(*key, result.model_path, result.samples, result.samples_seen, result.loss, result.seconds)
