"""`run.json`: what the latest run of a workspace was, so that exports and reports need no config.

A snapshot (`pipeline.snapshots`) says the same of a night, and is opened in the same way.
"""

from collections.abc import Mapping
from typing import Any

from operators.errors import WorkspaceError
from pipeline.artifact import Artifact
from pipeline.config.loader import canonical
from pipeline.curation import Curation
from pipeline.embed import samples_id, shards_read
from pipeline.integrity import read_sealed, sealed
from pipeline.listing import list_shards
from pipeline.manifests import read_recorded
from pipeline.models import decide_models
from pipeline.pool import names_password
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.snapshots import read_snapshot
from pipeline.storage import Store

RECORD = "run.json"
_PUBLIC = {
    *("endpoint_url", "region", "region_name", "profile", "anon", "requester_pays", "version_aware"),
    *("use_ssl", "verify", "host", "port", "project", "account_name", "addressing_style", "signature_version"),
    *("client_kwargs", "config_kwargs", "s3"),  # they hold other options
}
"""Storage options, and options inside them, that are recorded. Any other may be a credential under some name."""


def recorded_settings(config: Curation) -> dict[str, Any]:
    """A config as it is recorded: that of a curation, without what may be a credential.

    Only `_PUBLIC` storage options are kept: whoever opens the record brings credentials of their own.
    """
    settings = {name: value for name, value in canonical(config).items() if name in Curation.model_fields}
    published: dict[str, Any] = publishable(settings)
    return published


def describe(config: Curation, run: Run) -> dict[str, Any]:
    """A run's config and where its artifacts lie: all that it takes to open it again."""
    return {
        "config": recorded_settings(config),
        "artifacts": {name: _place(artifact) for name, artifact in run.artifacts.items() if name != "ledger"},
        "clusters": {title: _place(artifact) for title, artifact in run.clusters.items()},
        "embeddings": [[model, modality, run.embeddings[model, modality].step] for model, modality in run.embeddings],
        "verdicts": [artifact.step for artifact in run.verdicts],
    }


def write_record(config: Curation, run: Run, snapshot: int | None = None) -> None:
    """Records the run, and the snapshot that it is; writes nothing when it is the recorded one."""
    record = describe(config, run) | ({} if snapshot is None else {"snapshot": snapshot})
    data = sealed(record)
    if not (run.store.exists(RECORD) and run.store.read(RECORD) == data):
        run.store.replace(RECORD, data)


def read_record(store: Store, snapshot: int | None = None) -> Mapping[str, Any]:
    """What `describe` gave of the latest run, or of a snapshot's.

    Raises:
        WorkspaceError: no run has finished here, or there is no such snapshot.
        DamagedError: it is not what was written.
    """
    if snapshot is not None:
        return read_snapshot(store, snapshot)
    try:
        record: dict[str, Any] = read_sealed(store, RECORD)
    except FileNotFoundError as error:
        raise WorkspaceError(f"{store.url} must be the workspace of a finished run, got no {RECORD} in it") from error
    return record


def open_run(
    store: Store,
    *,
    workers: int,
    progress: Progress,
    snapshot: int | None = None,
    config: Curation | None = None,
) -> tuple[Run, Curation]:
    """Rebuilds a run of a workspace, for reading.

    Args:
        store: the workspace.
        workers: of the run.
        progress: of the run.
        snapshot: whose run; None for the latest.
        config: of the job that asks, which knows where the pool is now and how to open it. Default: the recorded one.

    Returns:
        the run with all its artifacts, and its config.

    Raises:
        WorkspaceError: no run has finished here, or a manifest of it is lost, or the pool's shards are no longer those
            it read, name by name and byte by byte as far as size and time of modification tell. The pool of a snapshot
            may have others besides.
    """
    record = read_record(store, snapshot)
    config = config or Curation.model_validate(record["config"])
    shards = list_shards(config.pool)
    resources = config.resources
    run = Run(
        store=store,
        pool=config.pool,
        shards=shards,
        seed=config.seed,
        models=decide_models(
            config.models, resources.gpus
        ),  # an export may have embeddings made that no step asked for
        workers=workers,
        threads=resources.threads,
        progress=progress,
        gpus=resources.gpus,
    )
    artifacts = read_artifacts(store, record)
    run.artifacts |= {name: artifacts[name] for name in _in_order(config, record)}
    for title, place in record["clusters"].items():
        run.add_clusters(title, read_recorded(store, place))
    there = {shard.name: samples_id(config.pool, shard) for shard in shards}
    read = shards_read(run.samples, there)
    # The pool of a nightly curation grows by day, and may hold shards that a night has left out.
    grows = record.get("snapshot", snapshot) is not None
    names = read.keys() if grows else read.keys() | there.keys()
    changed = sorted(name for name in names if read.get(name) != there.get(name))
    if changed:
        advice = "restore them, or open another snapshot" if grows else "run `winnow curate` again"
        raise WorkspaceError(
            f"the pool of {store.url} must still have the {len(read)} shards that its run read, got another or none "
            f"for {len(changed)} names, the first of them {changed[0]}: {advice}"
        )
    run.shards = [shard for shard in shards if shard.name in read]
    for model, modality, name in record["embeddings"]:
        run.embeddings[model, modality] = run.artifacts[name]
    run.verdicts = [run.artifacts[name] for name in record["verdicts"]]
    return run, config


def read_artifacts(store: Store, record: Mapping[str, Any]) -> dict[str, Artifact]:
    """The artifacts of a record by name, but for clusterings. Raises as `pipeline.manifests.read_recorded`."""
    return {name: read_recorded(store, place) for name, place in record["artifacts"].items()}


def _in_order(config: Curation, record: Mapping[str, Any]) -> list[str]:
    """The names of the artifacts in the order in which a run needs them; a record keeps none."""
    embeddings = {(model, modality): name for model, modality, name in record["embeddings"]}
    needed = ["samples", "unique_uid"]
    for step in config.steps:
        needed += [*(embeddings[need] for need in step.embeddings() if need in embeddings), step.title]
    known = record["artifacts"]
    return [name for name in dict.fromkeys([*needed, *known]) if name in known]


def _place(artifact: Artifact) -> dict[str, str]:
    return {"folder": artifact.folder, "manifest": artifact.manifest}


def publishable(value: Any) -> Any:
    """A config without what may be a credential."""
    if isinstance(value, Mapping):
        return {name: _public(item) if name == "storage" else publishable(item) for name, item in value.items()}
    return [publishable(item) for item in value] if isinstance(value, list) else value


def _public(option: Any) -> Any:
    if isinstance(option, Mapping):
        return {name: _public(item) for name, item in option.items() if name in _PUBLIC}
    return None if isinstance(option, str) and names_password(option) else option
