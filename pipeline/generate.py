"""A synthetic pool in img2dataset's layout, and the truth about each of its samples in a table beside it.

    DIR/pool/00000.tar             {key}.jpg|png|webp, {key}.txt and {key}.json of each sample
    DIR/pool/00000.parquet         one row for each attempted download, the failed ones included
    DIR/pool/00000_stats.json
    DIR/truth.parquet              TRUTH_SCHEMA: one row for each sample, broken ones and those past the cut included

With broken samples, the last tar is cut inside the last member of a sample. A reader cannot know whether that sample's
run of members was complete, so it and all that follow it are `unseen`; every sample before it is whole.

Everything about a sample is a pure function of the plan and the sample's index, so the order of rendering is free.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.drawing import render
from operators.edits import decode_image, edit_image, encode_image
from operators.errors import InputError
from operators.hashing import generator
from operators.scenes import CONCEPTS, Scene, draw_scene, mirror, write_caption
from operators.uids import UID_BYTES, derive_uid, parse_uid
from pipeline.pool_plan import PoolPlan, PoolSettings, plan_pool
from pipeline.sample_faults import FAULTS, Member, pack

TRUTH_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # relative to DIR/pool
        ("key", pa.string()),  # as the ledger will show it
        ("row", pa.int64()),  # position in the shard, from 0
        ("uid", pa.string()),  # what the ledger will show: supplied or derived
        ("concept", pa.string()),  # what the image shows, or showed before it was broken
        ("caption_concept", pa.string()),  # what the caption tells of
        ("aligned", pa.bool_()),
        ("duplicate_of", pa.string()),  # uid of the original, which lies earlier in the pool; else null
        ("edit", pa.string()),  # `exact` or one of EDITS where duplicate_of is set
        ("fault", pa.string()),  # a key of FAULTS, or `cut` at the sample that the cut goes through; else null
        ("expected", pa.string()),  # `ok`, a reject reason, or `unseen`
    ]
)
_DOWNLOAD_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uid", "url", "caption", "key", "status", "error_message")]
    + [(name, pa.int64()) for name in ("width", "height", "original_width", "original_height")]
    + [(name, pa.string()) for name in ("exif", "sha256")]
)

_FAILED_EVERY = 50
"""Every 50th download failed, so that a key follows from a row without counting."""
_DOWNLOAD_ERRORS = ("HTTP Error 404: Not Found", "HTTP Error 403: Forbidden", "The read operation timed out")
_ASPECTS = (1.0, 1.25, 0.8, 4 / 3, 0.75, 1.5, 4.0)
_ASPECT_WEIGHTS = (0.45, 0.14, 0.12, 0.11, 0.1, 0.06, 0.02)
_FORMATS, _FORMAT_WEIGHTS = ("jpg", "png", "webp"), (0.7, 0.15, 0.15)
_MIN_SIDE, _MAX_SIDE = 32, 512


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image; the size is in pixels."""

    data: bytes
    ext: str
    width: int
    height: int


def generate_pool(folder: Path, settings: PoolSettings, *, processes: int = 1) -> pa.Table:
    """Writes a pool and its truth; the same settings give the same bytes under the same Pillow and numpy.

    All of it appears at once: until then it lies in `.NAME.partial` beside the folder, which the next attempt replaces.

    Args:
        folder: a new or an empty folder.
        settings: what to generate.
        processes: that write shards side by side.

    Returns:
        The truth table, `TRUTH_SCHEMA`, in the order of shards and rows.

    Raises:
        InputError: the folder is not empty or not a folder.
        ConfigError: too few samples for one of each fault.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"the folder to generate into must be new or empty, got {folder}")
    plan = plan_pool(settings)
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    (partial / "pool").mkdir(parents=True)
    truth = pa.concat_tables(_write_shards(partial / "pool", plan, processes))
    pq.write_table(truth, partial / "truth.parquet")
    partial.rename(folder)
    return truth


def _write_shards(pool: Path, plan: PoolPlan, processes: int) -> list[pa.Table]:
    """Writes all shards; gives their parts of the truth, in order."""
    write = functools.partial(_write_shard, pool, plan)
    shards = range(plan.settings.num_shards)
    if processes == 1:
        return [write(shard) for shard in shards]
    # Not forked: this process may have threads, of Ray or of torch, whose locks a child would inherit closed.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool_of_processes:
        return list(pool_of_processes.map(write, shards))


def _write_shard(pool: Path, plan: PoolPlan, shard: int) -> pa.Table:
    """Writes one tar with its two side files and returns its part of the truth."""
    size = plan.settings.samples_per_shard
    indices = range(shard * size, min((shard + 1) * size, plan.settings.samples))
    path = pool / _shard_name(plan, indices[0])
    downloads, cut_member = [], ""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            download, members = make_sample(plan, index)
            downloads.append(download)
            for member in members:
                _add(tar, member)
            if index == plan.first_unseen:
                cut_member = members[-1].name
    if cut_member:
        _cut(path, cut_member)
    _write_downloads(path, downloads + _failed_downloads(plan, shard, len(indices)))
    return pa.Table.from_pylist([tell_truth(plan, index) for index in indices], TRUTH_SCHEMA)


def make_sample(plan: PoolPlan, index: int) -> tuple[dict[str, Any], list[Member]]:
    """One sample: what img2dataset knew of it when it was still sound, and its members in the tar."""
    picture, caption = _paint(plan, index), _tell(plan, index)
    download = {
        "uid": _supplied_uid(plan, index),
        "url": f"https://example.invalid/{index:09d}.{picture.ext}",
        "caption": caption,
        "key": _key(plan, index),
        "status": "success",
        "error_message": None,
        "width": picture.width,
        "height": picture.height,
        "original_width": picture.width,
        "original_height": picture.height,
        "exif": "{}",
        "sha256": hashlib.sha256(picture.data).hexdigest(),
    }
    metadata = {name: value for name, value in download.items() if name != "uid" or value is not None}
    if plan.settings.labelled:
        metadata["concept"] = str(CONCEPTS[plan.concept_N[index]])
    parts = {picture.ext: picture.data, "json": json.dumps(metadata).encode(), "txt": caption.encode()}
    fault = FAULTS.get(plan.faults.get(index, ""))
    return download, (fault.apply if fault else pack)(_key_in_tar(plan, index), parts)


def tell_truth(plan: PoolPlan, index: int) -> dict[str, Any]:
    """One row of the truth table."""
    concept, told = int(plan.concept_N[index]), int(plan.told_N[index])
    name = plan.faults.get(index)
    expected = FAULTS[name].expected if name else "ok"
    return {
        "shard": _shard_name(plan, index),
        "key": _ledger_key(plan, index),
        "row": index % plan.settings.samples_per_shard,
        "uid": _ledger_uid(plan, index),
        "concept": str(CONCEPTS[concept]),
        "caption_concept": str(CONCEPTS[told]),
        "aligned": concept == told,
        "duplicate_of": _ledger_uid(plan, int(plan.original_N[index])) if index in plan.edits else None,
        "edit": plan.edits.get(index),
        "fault": "cut" if index == plan.first_unseen else name,
        "expected": expected if index < plan.first_unseen else "unseen",
    }


def _paint(plan: PoolPlan, index: int) -> Picture:
    """The image of a sample, before any fault; a duplicate's is made from its original's."""
    edit, original = plan.edits.get(index), int(plan.original_N[index])
    rng = generator(plan.settings.seed, "picture", str(index))
    if edit == "exact":
        return _paint(plan, original)
    if edit:
        source = _paint(plan, original)
        image = edit_image(decode_image(source.data), edit, rng)
        recompressed = edit == "recompressed"
        ext = "jpg" if recompressed and source.ext == "png" else source.ext
        quality = rng.integers(25, 45) if recompressed else rng.integers(70, 90)
    else:
        image = render(_scene(plan, index), *_draw_size(rng), rng)
        ext = "jpg" if index in plan.faults else _FORMATS[rng.choice(len(_FORMATS), p=_FORMAT_WEIGHTS)]
        quality = rng.integers(75, 95)
    return Picture(encode_image(image, ext, int(quality)), ext, image.width, image.height)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in 32..512: the longer side even on a log scale, most shapes near a square, few a banner."""
    longer = np.exp(rng.uniform(np.log(_MIN_SIDE), np.log(_MAX_SIDE)))
    aspect = rng.choice(_ASPECTS, p=_ASPECT_WEIGHTS)
    width, height = longer * min(aspect, 1), longer / max(aspect, 1)
    return max(_MIN_SIDE, round(width)), max(_MIN_SIDE, round(height))


def _scene(plan: PoolPlan, index: int) -> Scene:
    """What the image of a sample shows."""
    if index in plan.edits:
        scene = _scene(plan, int(plan.original_N[index]))
        return mirror(scene) if plan.edits[index] == "mirrored" else scene
    return draw_scene(CONCEPTS[plan.concept_N[index]], generator(plan.settings.seed, "scene", str(index)))


def _tell(plan: PoolPlan, index: int) -> str:
    """The caption of a sample: of its own scene, or when misaligned of one that was never painted."""
    rng = generator(plan.settings.seed, "caption", str(index))
    if plan.told_N[index] == plan.concept_N[index]:
        return write_caption(_scene(plan, index), rng)
    return write_caption(draw_scene(CONCEPTS[plan.told_N[index]], rng), rng)


def _shard_name(plan: PoolPlan, index: int) -> str:
    return f"{index // plan.settings.samples_per_shard:05d}.tar"


def _key(plan: PoolPlan, index: int) -> str:
    """The key that img2dataset gave: five digits of the shard, four that also count the failed downloads before it."""
    shard, row = divmod(index, plan.settings.samples_per_shard)
    return f"{shard:05d}{row + row // (_FAILED_EVERY - 1):04d}"


def _key_in_tar(plan: PoolPlan, index: int) -> str:
    """The key that the names of the sample's members have, faults included."""
    name = plan.faults.get(index)
    if name == "returning_key":
        return _key(plan, plan.partners[index])
    return (FAULTS[name].prefix if name else "") + _key(plan, index)


def _supplied_uid(plan: PoolPlan, index: int) -> str | None:
    """The uid that the sample brings along, None for faults that may or may not let a reader see it."""
    name = plan.faults.get(index)
    if name == "invalid_uid":
        return f"sample-{index}"
    if name and not FAULTS[name].brings_uid:
        return None
    owner = plan.partners.get(index, index)
    return generator(plan.settings.seed, "uid", str(owner)).bytes(UID_BYTES).hex()


def _ledger_key(plan: PoolPlan, index: int) -> str:
    """The key in the ledger; a reader calls the second row of a key `{key}.2`, to tell the two apart."""
    return _key_in_tar(plan, index) + (".2" if plan.faults.get(index) == "returning_key" else "")


def _ledger_uid(plan: PoolPlan, index: int) -> str:
    """The uid in the ledger: the supplied one when it is valid, else derived."""
    supplied = parse_uid(_supplied_uid(plan, index))
    return (supplied or derive_uid(_shard_name(plan, index), _ledger_key(plan, index))).hex()


def _add(tar: tarfile.TarFile, member: Member) -> None:
    """Nothing of the clock, the user or the machine goes into the header."""
    info = tarfile.TarInfo(member.name)
    info.size = len(member.data)
    if member.link:
        info.type, info.linkname = tarfile.SYMTYPE, member.link
    tar.addfile(info, BytesIO(member.data))


def _cut(path: Path, name: str) -> None:
    """Ends the tar in the middle of a member's data."""
    with tarfile.open(path) as tar:
        member = tar.getmember(name)
    os.truncate(path, member.offset_data + member.size // 2)


def _failed_downloads(plan: PoolPlan, shard: int, num_samples: int) -> list[dict[str, Any]]:
    """The attempts of a shard that gave no sample."""
    failed = []
    for turn in range((num_samples - 1) // (_FAILED_EVERY - 1)):
        key = f"{shard:05d}{turn * _FAILED_EVERY + _FAILED_EVERY - 1:04d}"
        failed.append(
            {
                "uid": generator(plan.settings.seed, "failed", key).bytes(UID_BYTES).hex(),
                "url": f"https://example.invalid/failed/{key}.jpg",
                "caption": "a picture that is gone",
                "key": key,
                "status": "failed_to_download",
                "error_message": _DOWNLOAD_ERRORS[turn % len(_DOWNLOAD_ERRORS)],
            }
        )
    return failed


def _write_downloads(tar_path: Path, downloads: list[dict[str, Any]]) -> None:
    """The Parquet and the stats file beside a tar."""
    downloads = sorted(downloads, key=itemgetter("key"))
    pq.write_table(pa.Table.from_pylist(downloads, _DOWNLOAD_SCHEMA), tar_path.with_suffix(".parquet"))
    statuses = Counter(download["error_message"] or download["status"] for download in downloads)
    stats = {
        "count": len(downloads),
        "successes": statuses["success"],
        "failed_to_download": len(downloads) - statuses["success"],
        "failed_to_resize": 0,
        "status_dict": statuses,
    }
    tar_path.with_name(f"{tar_path.stem}_stats.json").write_text(json.dumps(stats, indent=4) + "\n")
