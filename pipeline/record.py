"""`run.json`: what the latest run of a workspace was, so that exports and reports need no config."""

from collections.abc import Mapping
from typing import Any

from operators.errors import WorkspaceError
from pipeline.artifact import Artifact, read_manifest
from pipeline.config.loader import canonical
from pipeline.curation import Curation
from pipeline.embed import samples_id
from pipeline.integrity import read_sealed, sealed
from pipeline.listing import list_shards
from pipeline.pool import names_password
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.storage import Store

RECORD = "run.json"
_PUBLIC = {
    *("endpoint_url", "region", "region_name", "profile", "anon", "requester_pays", "version_aware"),
    *("use_ssl", "verify", "host", "port", "project", "account_name", "addressing_style", "signature_version"),
    *("client_kwargs", "config_kwargs", "s3"),  # they hold other options
}
"""Storage options, and options inside them, that are recorded. Any other may be a credential under some name."""


def write_record(config: Curation, run: Run) -> None:
    """Records the run's config and artifacts; writes nothing when they are the recorded ones.

    Only `_PUBLIC` storage options are recorded: whoever opens the record brings credentials of their own.
    """
    record = {
        "config": publishable(canonical(config)),
        "artifacts": {name: _place(artifact) for name, artifact in run.artifacts.items() if name != "ledger"},
        "clusters": {title: _place(artifact) for title, artifact in run.clusters.items()},
        "embeddings": [[model, modality, run.embeddings[model, modality].step] for model, modality in run.embeddings],
        "verdicts": [artifact.step for artifact in run.verdicts],
    }
    data = sealed(record)
    if not (run.store.exists(RECORD) and run.store.read(RECORD) == data):
        run.store.replace(RECORD, data)


def read_record(store: Store) -> dict[str, Any]:
    """What `write_record` wrote: `config`, and where `artifacts`, `clusters`, `embeddings` and `verdicts` lie.

    Raises:
        WorkspaceError: no run has finished here.
        DamagedError: it is not what was written.
    """
    try:
        record: dict[str, Any] = read_sealed(store, RECORD)
    except FileNotFoundError as error:
        raise WorkspaceError(f"{store.url} must be the workspace of a finished run, got no {RECORD} in it") from error
    return record


def open_run(store: Store, *, workers: int, progress: Progress) -> tuple[Run, Curation]:
    """Rebuilds the latest run of a workspace, for reading.

    Returns:
        the run with all its artifacts, and its config.

    Raises:
        WorkspaceError: no run has finished here, or the pool's shards are no longer those it read, name by name and
            byte by byte as far as size and time of modification tell.
    """
    record = read_record(store)
    config = Curation.model_validate(record["config"])
    shards = list_shards(config.pool)
    resources = config.resources
    run = Run(
        store, config.pool, shards, config.seed, config.models, workers, resources.threads, progress, resources.gpus
    )
    for name, place in record["artifacts"].items():
        run.artifacts[name] = read_manifest(store, place["folder"], place["manifest"])
    for title, place in record["clusters"].items():
        run.add_clusters(title, read_manifest(store, place["folder"], place["manifest"]))
    read = {part.shard: part.id for part in run.samples.parts}
    there = {shard.name: samples_id(config.pool, shard) for shard in shards}
    changed = sorted(name for name in read.keys() | there.keys() if read.get(name) != there.get(name))
    if changed:
        raise WorkspaceError(
            f"the pool of {store.url} must still have the {len(read)} shards that its run read, got another or none "
            f"for {len(changed)} names, the first of them {changed[0]}: run `winnow curate` again"
        )
    for model, modality, name in record["embeddings"]:
        run.embeddings[model, modality] = run.artifacts[name]
    run.verdicts = [run.artifacts[name] for name in record["verdicts"]]
    return run, config


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
