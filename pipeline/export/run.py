"""`export`: writes what a run kept, in one of six formats, or finds that it is there already.

An export is addressed by its settings and by the samples and verdicts that it reads. Its receipt,
`exports/<address>.json` in the workspace, lists every file with its size and SHA-256, and is written last. A killed
export goes on where it stopped; an export of another config to the same place replaces the files of the earlier one.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from operators.encoders.settings import StoredSettings
from operators.errors import ConfigError, DamagedError
from pipeline.export import clip_retrieval, keys, parquet, semdedup, uids, webdataset
from pipeline.export.claims import FOLDER, Claim, check_owned, check_target, clear, read_claims, supersede
from pipeline.export.settings import ClipRetrievalExport, SemdedupExport, needs_images
from pipeline.export.settings import Export as ExportSettings
from pipeline.export.target import File, Piece, Target, open_target, read_receipts, write_piece
from pipeline.integrity import read_sealed, sealed
from pipeline.lease import claim_on
from pipeline.run import Modality, Run
from pipeline.spread import spread
from pipeline.status.write import STATUS
from pipeline.storage import Store, digest
from pipeline.summary import Export


@dataclass(frozen=True)
class _Format:
    """One format: its version, what it depends on besides samples and verdicts, and its files in stages."""

    version: int
    plan: Callable[[Run, Any], list[list[Piece]]]
    reads: Callable[[Run, Any], Any] = lambda run, settings: None


_FORMATS = {
    "webdataset": _Format(webdataset.VERSION, webdataset.plan),
    "parquet": _Format(parquet.VERSION, parquet.plan, parquet.reads),
    "clip_retrieval": _Format(clip_retrieval.VERSION, clip_retrieval.plan, clip_retrieval.reads),
    "semdedup": _Format(semdedup.VERSION, semdedup.plan, semdedup.reads),
    "uids": _Format(uids.VERSION, uids.plan),
    "keys": _Format(keys.VERSION, keys.plan, keys.reads),
}


def export(run: Run, settings: ExportSettings) -> Export:
    """Writes the kept samples of a run that has finished.

    Args:
        run: with its last verdicts in `entering`.
        settings: format and place.

    Raises:
        ConfigError: the format holds images and the pool has none, or the run lacks what the settings name.
        WorkspaceError: the place holds files that are not from an export of this workspace, or cannot be written.
        InputError: the pool is no longer what the run read.
    """
    started = time.monotonic()
    if needs_images(settings) and not all(source.has_images for source in run.pool.sources):
        raise ConfigError(f"export format must be one without images for a pool of embeddings, got {settings.format}")
    target = open_target(settings)
    address = _address(run, settings, target)
    sizes = target.sizes()
    if found := _find_receipt(run.store, address, sizes):
        return found
    stages = _FORMATS[settings.format].plan(run, settings)
    names = tuple(name for stage in stages for piece in stage for name in piece.names)
    mine = Claim(address, settings.format, target.url, target.store.url, names)
    claims = read_claims(run.store, mine)
    check_target(target, mine, claims, sizes)
    older = supersede(run.store, mine, claims)
    files = _write(run, target, mine, stages)
    clear(run.store, target, mine, older)
    target.remove_scratch()
    return _write_receipt(run, settings, mine, files, time.monotonic() - started)


def check_place(workspace: Store, settings: ExportSettings) -> None:
    """Refuses a place that holds what is not ours, before the work that an export is at the end of.

    In a bucket, whose listings may lag behind, claims are known only while the workspace is new. Where an export to
    this place is whole, it may be the one that is asked for, whatever else lies there. `export` looks again anyway.

    Raises:
        WorkspaceError: the place holds files that are not from an export of this workspace.
    """
    target = open_target(settings)
    sizes = target.sizes()
    claims_are_known = workspace.is_local or not workspace.exists(STATUS)
    if not sizes or not claims_are_known:
        return
    with contextlib.suppress(DamagedError):  # of a claim or a receipt, which the export comes upon again
        claims = read_claims(workspace)
        if not any(claim.url == target.url and _find_receipt(workspace, claim.address, sizes) for claim in claims):
            check_owned(target, claims, sizes)


def find_export(run: Run, settings: ExportSettings) -> Export | None:
    """What an earlier run of the same steps wrote, when all of it is still there."""
    target = open_target(settings)
    return _find_receipt(run.store, _address(run, settings, target), target.sizes())


def embeddings_for(run: Run, settings: ExportSettings) -> list[tuple[str, Modality]]:
    """The embeddings that an export writes and that no step may have asked for: of images, and stored ones of captions.

    (A text tower is not run for an export alone: captions are written where a step has embedded them.)
    """
    if not isinstance(settings, ClipRetrievalExport | SemdedupExport):
        return []
    needs: list[tuple[str, Modality]] = [(settings.model, "image")]
    model = run.models[settings.model]
    if isinstance(model, StoredSettings) and model.text and isinstance(settings, ClipRetrievalExport):
        needs.append((settings.model, "text"))
    return needs


def _address(run: Run, settings: ExportSettings, target: Target) -> str:
    """Names all that the files depend on; credentials are no part of it."""
    chosen = _FORMATS[settings.format]
    assert run.entering is not None
    return digest(
        chosen.version,
        settings.model_dump(mode="json", exclude={"path", "storage"}),
        target.url,
        run.samples.digest,
        run.entering.digest,
        chosen.reads(run, settings),
    )


def _write(run: Run, target: Target, mine: Claim, stages: Sequence[Sequence[Piece]]) -> list[File]:
    """Writes what is not there yet. The files of a stage are there only while those before it are whole."""
    written = {file.name: file for file in read_receipts(run.store, mine.receipts)}
    there = target.sizes()
    done = {name for name, file in written.items() if there.get(name) == file.size}
    pending: list[Sequence[Piece]] = [
        [piece for piece in stage if not done.issuperset(piece.names)] for stage in stages
    ]
    if pending[0]:
        for name in (name for stage in stages[1:] for piece in stage for name in piece.names):
            target.store.remove(name)
        pending[1:] = stages[1:]
    write = partial(write_piece, run.store, target, mine.receipts, claim_on(run.store.url))
    total = sum(piece.samples for stage in pending for piece in stage)
    with run.progress.step(f"export {mine.format}", total) as progress:
        for stage in pending:
            for samples, files in spread(write, stage, workers=run.workers):
                written |= {file.name: file for file in files}
                progress.advance(samples)
    return [written[name] for name in mine.names]


def _write_receipt(run: Run, settings: ExportSettings, mine: Claim, files: Sequence[File], seconds: float) -> Export:
    assert run.entering is not None
    made = Export(
        format=settings.format,
        path=settings.path,
        samples=run.entering.total("kept"),
        files=len(files),
        bytes=sum(file.size for file in files),
        seconds=round(seconds, 3),
        reused=False,
    )
    record = {"export": asdict(made), "url": mine.url, "files": [asdict(file) for file in files]}
    run.store.replace(mine.receipt, sealed(record))
    return made


def _find_receipt(workspace: Store, address: str, sizes: dict[str, int]) -> Export | None:
    """What an earlier run wrote, when all of it is still there. Raises DamagedError."""
    try:
        record = read_sealed(workspace, f"{FOLDER}/{address}.json")
    except FileNotFoundError:
        return None
    if any(sizes.get(file["name"]) != file["size"] for file in record["files"]):
        return None
    return Export(**record["export"] | {"reused": True})
