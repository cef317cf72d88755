"""Running a curation: every step in order, each found or made, then the ledger, the summary and the exports."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from operators.encoders.settings import StoredSettings
from operators.errors import ModelError, WorkspaceError
from pipeline.artifact import Artifact
from pipeline.curation import Curation
from pipeline.embed import check_stored_model, make
from pipeline.engine import engine
from pipeline.export.run import check_place, embeddings_for, export
from pipeline.export.target import open_target
from pipeline.given import Given, Standing, check_order, second_looks
from pipeline.ledger_writer import write_ledger
from pipeline.limits import check_limits
from pipeline.listing import check_source, list_shards
from pipeline.models import check_model, decide_models
from pipeline.nightly.state import check_given, read_given
from pipeline.pool import Shard
from pipeline.progress import Progress, open_progress
from pipeline.quarantine import rebuilding
from pipeline.record import write_record
from pipeline.report.build import write_report
from pipeline.run import Modality, Run
from pipeline.shared_disk import check_shared
from pipeline.snapshots import Snapshot, read_history
from pipeline.status.write import working
from pipeline.steps.base import Step
from pipeline.steps.unique_uid import UniqueUid
from pipeline.storage import Store
from pipeline.summary import Summary, summarise, write_summary


def check(config: Curation, *, dry: bool = False) -> list[Shard]:
    """Checks what can be known before any work: paths, columns, weights, lists, functions, where things are written.

    Args:
        config: of the run.
        dry: do not try to write anywhere.

    Returns:
        the pool's shards, sorted by name.

    Raises:
        UserError: what is wrong and what to change.
    """
    shards = list_shards(config.pool)
    for index, source in enumerate(config.pool.sources):
        check_source(source, [shard for shard in shards if shard.source == index])
    for name, settings in config.models.items():
        try:
            check_model(settings)
        except ModelError as error:
            raise ModelError(f"models.{name}: {error}") from error
        if isinstance(settings, StoredSettings):
            check_stored_model(config.pool, shards, name, settings)
    if config.given:
        check_given(config, config.given)
        check_order(config.steps, "rebalance")
    steps = {step.title: step for step in config.steps}
    for step in config.steps:
        step.check()
        if config.given:
            step.check_nightly()
        step.check_scores(lambda score: steps[score].scored_by(decide_models(config.models, config.resources.gpus)))
    stores = [config.store, *(open_target(target).store for target in config.export)]
    for store in [] if dry else stores:
        store.check_writable()
    for target in config.export:
        if not dry or open_target(target).store.is_local:  # a plan may be made where nobody can reach the targets
            check_place(config.store, target)
    return shards


def check_no_nights(store: Store) -> None:
    """Raises WorkspaceError in the workspace of nights, whose ledger and exports a curation would replace."""
    if ids := read_history(store).ids:
        raise WorkspaceError(
            f"{store.url} must be a workspace without snapshots for winnow curate, got one whose latest is {ids[-1]}: "
            "run winnow nightly, or give this run a workspace and exports of its own"
        )


def run_curation(config: Curation, address: str | None = None) -> Summary:
    """Checks a config, starts or joins Ray, and runs every step. Raises as `check` and `curate` do."""
    shards = check(config)
    check_no_nights(config.store)
    with engine(config.resources, address) as workers, open_progress() as progress:
        check_shared(config.store)
        return curate(config, shards, workers=workers, progress=progress)


def curate(config: Curation, shards: Sequence[Shard], *, workers: int, progress: Progress) -> Summary:
    """Runs every step of a checked config on a Ray that is up.

    What is found damaged in the workspace on the way is moved out of it and made again.

    Raises:
        UserError, LimitExceeded: nothing half-done is visible; a later run goes on from what was published.
    """
    config = config.resolved()
    with working(config.store, "curate", progress) as shown:
        work = partial(_curate, config, shards, workers, shown)
        return rebuilding(config.store, shown, workers, work)


def _curate(config: Curation, shards: Sequence[Shard], workers: int, progress: Progress) -> Summary:
    check_no_nights(config.store)  # again: now nobody else has it
    given, standing = read_given(config)
    run = start_run(config, shards, workers=workers, progress=progress, given=given, standing=standing)
    complete(config, run)
    return finish(config, run)


def complete(config: Curation, run: Run) -> None:
    """Finds or makes all the artifacts of a run: those of its steps, and the embeddings that exports ask for."""
    for _ in run_steps(run, config.steps):
        pass
    for target in config.export:
        make(run, embeddings_for(run, target))


def finish(config: Curation, run: Run, snapshot: Snapshot | None = None) -> Summary:
    """Writes all that shows a run whose artifacts are there: ledger, record, exports, summary, report.

    Args:
        config: of the job.
        run: its run.
        snapshot: that the run is, published or about to be; its warnings are those of the summary, too.
    """
    for target in config.export:
        make(run, embeddings_for(run, target))  # of a run that was opened, or another config's
    run.artifacts["ledger"] = write_ledger(run, run.verdicts)
    write_record(config, run, snapshot["id"] if snapshot else None)
    exports = [export(run, settings) for settings in config.export]
    summary = summarise(run, exports)
    if snapshot:
        summary = replace(summary, warnings=[*summary.warnings, *snapshot["warnings"]])
    write_summary(run, summary)
    if config.report:
        write_report(run, config.steps, summary, snapshot=snapshot)
    return summary


def start_run(
    config: Curation,
    shards: Sequence[Shard],
    *,
    workers: int,
    progress: Progress,
    dry: bool = False,
    given: Given | None = None,
    standing: Standing | None = None,
) -> Run:
    """A run of a config that has found and made nothing yet; `pipeline.given` says what it is given of earlier ones."""
    return Run(
        store=config.store,
        pool=config.pool,
        shards=shards,
        seed=config.seed,
        models=decide_models(config.models, config.resources.gpus),
        workers=workers,
        threads=config.resources.threads,
        gpus=config.resources.gpus,
        progress=progress,
        dry=dry,
        given=given,
        standing=standing,
    )


def run_steps(run: Run, steps: Sequence[Step]) -> Iterator[Artifact]:
    """Finds or makes every artifact in order; yields each step's when it is there."""
    make(run, first_needs(steps))
    yield run.samples
    unique = UniqueUid()
    run.step_started = time.monotonic()
    yield run.add_verdicts(unique.run(run))
    check_limits(run.pool, run.samples, run.verdicts[0])
    for step in [*steps, *(second_looks(steps) if run.given is not None else ())]:
        make(run, step.embeddings())
        run.step_started = time.monotonic()
        artifact = step.run(run)
        if step.judges:
            run.add_verdicts(artifact)
        else:
            run.artifacts[step.title] = artifact
        yield artifact


def first_needs(steps: Sequence[Step]) -> list[tuple[str, Modality]]:
    """The embeddings that are needed before any step may drop a row: made while the samples are read."""
    needs: list[tuple[str, Modality]] = []
    for step in steps:
        needs += [need for need in step.embeddings() if need not in needs]
        if step.judges:
            break
    return needs
