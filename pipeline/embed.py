"""The two kinds of artifact that come from the shards themselves: `samples`, and a model's embeddings.

One pass over the shards makes all that is first needed at the same place. What the workspace already holds is left out.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from operators.encoders.settings import StoredSettings
from operators.errors import InputError
from pipeline.artifact import Artifact, publish_manifest, published_parts
from pipeline.models import mismatch, model_identity
from pipeline.parts import Part
from pipeline.pool import Pool, Shard
from pipeline.run import Modality, NotPublished, Run, find_published
from pipeline.storage import digest
from pipeline.stream.finalise import damaged_id
from pipeline.stream.flow import new_attempt, run_pass
from pipeline.stream.stored import stored_width
from pipeline.stream.work import EMBEDDING_VERSION, SAMPLES_VERSION, Need, Pass, ShardWork

_NOT_READING = {"path", "root", "name", "weight", "storage", "labels_path", "embeddings_path", "paths_path"}
"""Source settings that say where shards lie, not how they are read: moving a pool redoes nothing."""


def samples_folder(pool: Pool) -> str:
    """Where the `samples` artifact of a pool lies."""
    return f"samples/{digest(SAMPLES_VERSION, _limits(pool))}"


def samples_id(pool: Pool, shard: Shard) -> str:
    """The part id of a shard in the `samples` artifact: what it holds and how it is read."""
    reading = pool.sources[shard.source].model_dump(mode="json", exclude=_NOT_READING)
    return digest(shard.fingerprint, reading)


def shards_read(samples: Artifact, there: Mapping[str, str]) -> dict[str, str]:
    """Shard -> the id of its part, by which it is known whether the shard is still the one that was read.

    Args:
        samples: what was read.
        there: shard -> `samples_id`, of the shards that are there now. A part of a shard that could not be read has an
            id of its own; here it has that of the shard, if that is still the same.
    """
    read = dict(zip(samples.column("shard"), samples.column("id"), strict=True))
    if all(there.get(name, part_id) == part_id for name, part_id in read.items()):
        return read
    for part in samples.parts:
        asked = there.get(part.shard, part.id)
        if part.id == damaged_id(asked, part.notes.get("damage"), part.rows):
            read[part.shard] = asked
    return read


def make(run: Run, needs: Sequence[tuple[str, Modality]]) -> None:
    """Makes sure of `samples`, and of the embeddings of every row that still stands, in one pass over the shards.

    Args:
        run: gains `artifacts["samples"]` and `embeddings`.
        needs: (model, modality) pairs; those that the run has already are left as they are.
    """
    started = time.monotonic()
    ids = _samples_ids(run)
    targets = [_Target("samples", samples_folder(run.pool), ids, _limits(run.pool))]
    wanted = [_need(run, *need) for need in needs if need not in run.embeddings]
    targets += [
        _Target(need.name, need.folder, _embedding_ids(run, ids), _embedding_settings(run, need.model, need.modality))
        for need in wanted
    ]

    published = [run.artifacts.get(target.name) or _find(run, target) for target in targets]
    made = [
        {part.id: part for part in artifact.parts}
        if artifact
        else published_parts(run.store, target.folder, target.ids)
        for target, artifact in zip(targets, published, strict=True)
    ]
    there = [set(parts) for parts in made]
    missing = [target for target, artifact in zip(targets, published, strict=True) if artifact is None]
    if missing and run.dry:
        run.artifacts.update({artifact.step: artifact for artifact in published if artifact})
        begun = zip(targets, made, strict=True)
        rows = {target.name: sum(part.counts["in"] for part in parts.values()) for target, parts in begun}
        raise NotPublished(missing[0].name, rows)
    if missing:
        _stream(run, targets, wanted, made, title=", ".join(target.name for target in missing))
    seconds = round(time.monotonic() - started, 3)
    for target, artifact, parts, before in zip(targets, published, made, there, strict=True):
        run.artifacts[target.name] = artifact or _publish(run, target, parts, before, seconds)
        seconds = seconds if artifact else 0.0  # one pass, counted once
    for need in wanted:
        run.embeddings[need.model, need.modality] = run.artifacts[need.name]


@dataclass(frozen=True)
class _Target:
    """An artifact that a pass may have to make: the part ids in the order of the shards, the settings to record."""

    name: str
    folder: str
    ids: Sequence[str]
    settings: Mapping[str, Any]


def _stream(
    run: Run, targets: Sequence[_Target], needs: Sequence[Need], made: Sequence[dict[str, Part]], title: str
) -> None:
    """Passes over the shards that lack a part of some target, and adds what was made to `made`."""
    samples, *embeddings = targets
    works = []
    entering: list[Part | None] = []
    for i, shard in enumerate(run.shards):
        part = made[0].get(samples.ids[i])
        lacking = tuple(
            (need, target.ids[i])
            for need, target, parts in zip(needs, embeddings, made[1:], strict=True)
            if target.ids[i] not in parts
        )
        if part is None or lacking:
            verdicts = run.entering.parts[i] if run.entering else None
            path, rows = (part.path, part.rows) if part else (None, None)
            works.append(ShardWork(shard, samples.ids[i], path, rows, verdicts.path if verdicts else None, lacking))
            entering.append(verdicts or part)
    if not works:
        return
    job = Pass(run.store, run.pool, samples.folder, run.models, new_attempt())
    by_folder = {target.folder: parts for target, parts in zip(targets, made, strict=True)}
    # Rows are known where the samples are.
    known = [part.counts["kept"] for part in entering if part]
    total = sum(known) if len(known) == len(works) else None
    with run.progress.step(title, total) as progress:
        for folder, part_id, part in run_pass(job, works, workers=run.workers, gpus=run.gpus, progress=progress):
            by_folder[folder][part_id] = part


def _need(run: Run, model: str, modality: Modality) -> Need:
    settings = _embedding_settings(run, model, modality)
    dim = _stored_width(run, model, modality)
    identity = digest(EMBEDDING_VERSION, settings["model"], modality, settings["samples"], *([dim] if dim else []))
    return Need(model, modality, f"{model}.{modality}/{identity}", dim)


def _stored_width(run: Run, model: str, modality: Modality) -> int | None:
    settings = run.models[model]
    if rule := mismatch(run.pool, settings):  # of a reference set; a pool's is found in the config
        raise InputError(f"models.{model} {rule}")
    return _width(run.pool, run.shards, model, settings, modality) if isinstance(settings, StoredSettings) else None


def check_stored_model(pool: Pool, shards: Sequence[Shard], name: str, settings: StoredSettings) -> None:
    """Refuses, before any work, arrays that the pool does not have. Raises InputError."""
    for modality in settings.modalities:
        _width(pool, shards, name, settings, modality)


def _width(pool: Pool, shards: Sequence[Shard], name: str, settings: StoredSettings, modality: str) -> int:
    array = settings.array(modality)
    assert array is not None
    try:
        return stored_width(pool, shards, array)
    except InputError as error:
        raise InputError(f"models.{name}.{modality} {error}") from error


def _embedding_settings(run: Run, model: str, modality: Modality) -> dict[str, Any]:
    return {"model": model_identity(run.models[model]), "modality": modality, "samples": samples_folder(run.pool)}


def _limits(pool: Pool) -> dict[str, Any]:
    return pool.model_dump(mode="json", include={"max_pixels", "max_member_bytes", "chunk_samples"})


def _samples_ids(run: Run) -> list[str]:
    """The parts that the run has; before it has any, those that it asks for: see `ShardReceipts.part_id`."""
    if samples := run.artifacts.get("samples"):
        return [part.id for part in samples.parts]
    return [samples_id(run.pool, shard) for shard in run.shards]


def _embedding_ids(run: Run, ids: Sequence[str]) -> list[str]:
    masks = [part.mask for part in run.entering.parts] if run.entering else [""] * len(ids)
    return [digest(part_id, mask) for part_id, mask in zip(ids, masks, strict=True)]


def _find(run: Run, target: _Target) -> Artifact | None:
    return find_published(run.store, target.folder, target.ids)


def _publish(run: Run, target: _Target, made: dict[str, Part], before: set[str], seconds: float) -> Artifact:
    # A part may come from a pool that was elsewhere; its shard is what this pool calls it.
    parts = tuple(
        replace(made[part_id], shard=shard.name) for part_id, shard in zip(target.ids, run.shards, strict=True)
    )
    reads = (
        ()
        if target.name == "samples"
        else tuple(artifact.manifest for artifact in (run.samples, run.entering) if artifact)
    )
    rows_new = sum(part.counts["in"] for part in parts if part.id not in before)
    artifact = Artifact(target.name, target.folder, parts, seconds=seconds, reads=reads, rows_new=rows_new)
    return publish_manifest(run.store, artifact, target.settings)
