"""Running an evaluation: every task is prepared, put to each model, measured and published."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import partial

from operators.errors import ConfigError, ModelError, UserError
from operators.evaluation.intervals import bootstrap
from operators.evaluation.outcomes import Outcomes, all_metrics
from pipeline.artifact import parquet_bytes, publish_beside
from pipeline.engine import engine
from pipeline.evaluation.jobs import Inputs, Job, Solved
from pipeline.evaluation.prepare import Prepared, prepare
from pipeline.evaluation.results import Result, check_workspace, draws, write_results
from pipeline.evaluation.settings import Evaluation
from pipeline.evaluation.suite import expand_suite
from pipeline.evaluation.task_settings import Classification, DatacompSuite, LinearProbe, NamedTask
from pipeline.integrity import read_sealed, sealed
from pipeline.labels.lists import read_classes, read_templates
from pipeline.labels.peek import check_field
from pipeline.models import check_model, decide_precision
from pipeline.pool import Pool, Shard
from pipeline.progress import Progress, open_progress
from pipeline.quarantine import rebuilding
from pipeline.references import check_reference
from pipeline.run import Run
from pipeline.shared_disk import check_shared
from pipeline.spread import spread
from pipeline.status.write import working
from pipeline.storage import Store, digest

OUTCOMES_VERSION = 2


def run_evaluation(config: Evaluation, address: str | None = None) -> list[Result]:
    """Checks a config, starts or joins Ray, and evaluates. Raises as `check` and `evaluate` do."""
    check(config)
    with engine(config.resources, address) as workers, open_progress() as progress:
        check_shared(config.store)
        return evaluate(config, workers=workers, progress=progress)


def check(config: Evaluation) -> None:
    """Checks what can be known before any work: paths, columns, weights, lists, where results are written.

    Raises:
        UserError: what is wrong and what to change.
    """
    for name, settings in config.models.items():
        try:
            check_model(settings)
        except ModelError as error:
            raise ModelError(f"models.{name}: {error}") from error
    tasks = expand(config)
    shards = {}
    for task in tasks:
        shards[task.name] = {key: _check_set(f"tasks.{task.name}.{key}", pool) for key, pool in task.pools.items()}
        if isinstance(task, Classification | LinearProbe) and task.classes is not None:
            read_classes(task.classes, task.storage)
        if isinstance(task, Classification):
            read_templates(task.templates, task.storage)
    config.store.check_writable()
    check_workspace(config.store)
    for task in tasks:
        if isinstance(task, Classification | LinearProbe):
            _check_labels(task, shards[task.name])


def evaluate(config: Evaluation, *, workers: int, progress: Progress) -> list[Result]:
    """Evaluates on a Ray that is up.

    Returns:
        a result for each task and model, task by task; also written into the workspace.

    Raises:
        UserError, LimitExceeded: nothing half-done is visible; a later run goes on from what was published.
    """
    config = config.resolved()
    tasks, resources = expand(config), config.resources
    results: list[Result] = []
    with working(config.store, "evaluate", progress) as shown:
        run = Run(
            store=config.store,
            pool=next(iter(tasks[0].pools.values())),
            shards=[],
            seed=config.seed,
            models={name: decide_precision(settings, resources.gpus) for name, settings in config.models.items()},
            workers=workers,
            threads=resources.threads,
            gpus=resources.gpus,
            progress=shown,
        )
        for task in tasks:
            work = partial(_evaluate_task, run, task, config.bootstrap)
            for result in rebuilding(config.store, shown, workers, work):
                shown.note(_describe(result), step=task.name)
                results.append(result)
        write_results(config.store, results)
    return results


def expand(config: Evaluation) -> list[NamedTask]:
    """The tasks, those of a suite each by itself.

    Raises:
        ConfigError: two tasks have one name.
        InputError: a suite is not what its layout says.
    """
    tasks: list[NamedTask] = []
    for task in config.tasks:
        tasks += expand_suite(task) if isinstance(task, DatacompSuite) else [task]
    names = [task.name for task in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"names of tasks must be unique, those of suites too, got {twice[0]!r} twice")
    return tasks


def _check_labels(task: Classification | LinearProbe, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Looks at the labels of a task's sets as far as that is cheap: a wrong list would show after the embedding."""
    classes = None if task.classes is None else read_classes(task.classes, task.storage)
    for key, pool in task.pools.items():
        try:
            seen = pool.without_text
            check_field(seen, shards[key], task.field_in(pool), classes)
            if task.group_field and key != "train":
                check_field(seen, shards[key], task.group_field, None, "group_field")
        except UserError as error:
            raise type(error)(f"tasks.{task.name}: {error}") from error


def _check_set(key: str, pool: Pool) -> list[Shard]:
    try:
        return check_reference(pool.sources)
    except UserError as error:
        raise type(error)(f"{key}: {error}") from error


def _evaluate_task(run: Run, task: NamedTask, resamples: int) -> list[Result]:
    """Finds or makes the result of every model."""
    started = time.monotonic()
    prepared = prepare(run, task)
    measured = digest(OUTCOMES_VERSION, task.name, task.main_metric, resamples, run.seed, prepared.identity)
    folders = [f"outcomes/{digest(measured, inputs.digest)}" for inputs in prepared.inputs]
    missing = [(at, inputs) for at, inputs in zip(folders, prepared.inputs, strict=True) if not _is_made(run.store, at)]
    if missing:
        with run.progress.step(task.name, len(missing), "models") as progress:
            outcomes = _solve_all(run, prepared.job, [inputs for _, inputs in missing])
            elapsed = time.monotonic() - started  # a worker's clock may be another one
            measure = partial(_publish, run.store, prepared.job, task, resamples, run.seed, elapsed)
            items = [(at, solved, facts) for (at, _), (solved, facts) in zip(missing, outcomes, strict=True)]
            for _ in spread(measure, items, workers=run.workers):
                progress.advance(1)
    made = {at for at, _ in missing}
    return [
        _result(run.store, task, prepared, inputs.model, at, reused=at not in made)
        for at, inputs in zip(folders, prepared.inputs, strict=True)
    ]


def _solve_all(run: Run, job: Job, inputs: Sequence[Inputs]) -> list[tuple[Outcomes, dict[str, float]]]:
    """The outcomes of each model, and the facts beside them."""
    pieces = job.pieces
    items = [(model, number) for model in range(len(inputs)) for number in range(len(pieces))]
    parts: dict[tuple[int, int], Solved] = {}
    for place, solved in spread(partial(_solve, run.store, job, tuple(inputs)), items, workers=run.workers):
        parts[place] = solved
    by_model = [[parts[model, number] for number in range(len(pieces))] for model in range(len(inputs))]
    return [(job.join(solved), solved[0].facts) for solved in by_model]


def _solve(store: Store, job: Job, inputs: Sequence[Inputs], place: tuple[int, int]) -> tuple[tuple[int, int], Solved]:
    model, number = place
    return place, job.solve(store, inputs[model], job.pieces[number])


def _publish(
    store: Store,
    job: Job,
    task: NamedTask,
    resamples: int,
    seed: int,
    elapsed: float,
    item: tuple[str, Outcomes, dict[str, float]],
) -> None:
    """Measures one model's outcomes and keeps them; the record comes last."""
    started = time.monotonic()
    at, outcomes, facts = item
    metric = partial(outcomes.measure, task.main_metric)
    interval = None
    if resamples:
        estimate = bootstrap(metric, outcomes.num_units, draws(seed, task.name), resamples=resamples)
        interval = (estimate.low, estimate.high)
    record = {
        "metrics": all_metrics(outcomes, task.main_metric),
        "interval": interval,
        "num_samples": outcomes.num_units,
        "not_embedded": outcomes.not_embedded,
        "facts": facts,
        "seconds": round(elapsed + time.monotonic() - started, 3),
    }
    data = parquet_bytes(job.table(outcomes))
    table = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    publish_beside(store, f"{at}.parquet", data)
    store.publish(f"{at}.json", sealed({**record, "table": table}))


def _is_made(store: Store, at: str) -> bool:
    return store.exists(f"{at}.json")


def _result(store: Store, task: NamedTask, prepared: Prepared, model: str, at: str, *, reused: bool) -> Result:
    record = read_sealed(store, f"{at}.json")
    record.pop("table", None)
    interval = record.pop("interval")
    return Result(
        key=task.name,
        dataset=task.dataset,
        task=task.task,
        model=model,
        metric=task.main_metric,
        interval=(interval[0], interval[1]) if interval else None,
        num_classes=prepared.num_classes,
        rejected=prepared.set.rejected,
        damaged=prepared.set.damaged,
        outcomes=f"{at}.parquet",
        train=None if prepared.train is None else prepared.train.facts,
        reused=reused,
        **record,
    )


def _describe(result: Result) -> str:
    """`CIFAR-10: curated acc1 0.4120 [0.4023, 0.4216] of 10,000 samples`."""
    interval = f" [{result.interval[0]:.4f}, {result.interval[1]:.4f}]" if result.interval else ""
    value = f"{result.metric} {result.value:.4f}{interval}"
    return f"{result.dataset}: {result.model} {value} of {result.num_samples:,} samples"
