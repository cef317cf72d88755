"""`run.json`: what the latest run of a workspace was, so that exports and reports need no config."""

from collections.abc import Mapping
from typing import Any

from operators.errors import WorkspaceError
from pipeline.artifact import manifest_name, read_manifest
from pipeline.config.loader import canonical
from pipeline.curation import Curation
from pipeline.pool import list_shards
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.storage import Store, to_json

RECORD = "run.json"
_SECRETS = {"key", "secret", "token", "password", "username", "client_kwargs", "config_kwargs"}


def write_record(config: Curation, run: Run) -> None:
    """Records the run's config and artifacts; writes nothing when they are the recorded ones.

    Credentials among the storage options are left out: whoever opens the record brings their own.
    """
    record = {
        "config": _without_secrets(canonical(config)),
        "artifacts": {
            name: {
                "folder": artifact.folder,
                "manifest": manifest_name(artifact.folder, (part.id for part in artifact.parts)),
            }
            for name, artifact in run.artifacts.items()
            if name != "ledger"
        },
        "embeddings": [[model, modality, run.embeddings[model, modality].step] for model, modality in run.embeddings],
        "verdicts": [artifact.step for artifact in run.verdicts],
    }
    data = to_json(record)
    if not (run.store.exists(RECORD) and run.store.read(RECORD) == data):
        run.store.replace(RECORD, data)


def open_run(store: Store, *, workers: int, progress: Progress) -> tuple[Run, Curation]:
    """Rebuilds the latest run of a workspace, for reading.

    Returns:
        the run with all its artifacts, and its config.

    Raises:
        WorkspaceError: no run has finished here, or the pool's shards are no longer those it read.
    """
    try:
        record = store.read_json(RECORD)
    except FileNotFoundError as error:
        raise WorkspaceError(f"{store.url} must be the workspace of a finished run, got no {RECORD} in it") from error
    config = Curation.model_validate(record["config"])
    shards = list_shards(config.pool)
    run = Run(store, config.pool, shards, config.seed, config.models, workers, config.resources.threads, progress)
    for name, place in record["artifacts"].items():
        run.artifacts[name] = read_manifest(store, place["folder"], place["manifest"])
    known = [part.shard for part in run.samples.parts]
    if known != [shard.name for shard in shards]:
        raise WorkspaceError(
            f"the pool of {store.url} must still have the {len(known)} shards that its run read, got {len(shards)} "
            "or others: run `winnow curate` again"
        )
    for model, modality, name in record["embeddings"]:
        run.embeddings[model, modality] = run.artifacts[name]
    run.verdicts = [run.artifacts[name] for name in record["verdicts"]]
    return run, config


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: (
                {option: setting for option, setting in item.items() if option not in _SECRETS}
                if name == "storage"
                else _without_secrets(item)
            )
            for name, item in value.items()
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value
