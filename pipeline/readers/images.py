"""Image folders: each file is a sample, each shard a slice of the sorted listing.

The key is the path below the root without its extension; where that would give two files of a slice one key (`a.jpg`
and `a.png`), they keep theirs. The label is the name of the folder a file lies in; a file in the root has none.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from operators.rejects import Reason
from pipeline.listing import printable
from pipeline.pool import Pool, Shard
from pipeline.readers.sample import RawSample, judge_image
from pipeline.readers.stream import read_files
from pipeline.remote import open_location

FILES_AT_ONCE = 16
"""Files fetched side by side: hides a store's latency, and bounds the memory."""


def read_images(pool: Pool, shard: Shard, rows: frozenset[int] | None, members: bool) -> Iterator[RawSample]:
    """Yields the images of a slice, or those of `rows` only; see `pipeline.readers.read_shard`."""
    paths = [printable(path) for path, _ in shard.files]
    keys = make_keys(paths)
    wanted = [row for row in range(len(keys)) if rows is None or row in rows]
    for start in range(0, len(wanted), FILES_AT_ONCE):
        part = wanted[start : start + FILES_AT_ONCE]
        too_large = {row for row in part if shard.files[row][1] > pool.max_member_bytes}
        readable = [row for row in part if row not in too_large]
        images = dict(zip(readable, _read(pool, shard, readable), strict=True))
        for row in part:
            reason = Reason.MEMBER_TOO_LARGE if row in too_large else judge_image(images[row], pool.max_member_bytes)
            sample = RawSample(row=row, key=keys[row], metadata=_label(paths[row]), reason=reason)
            if reason is None:
                sample.image, sample.ext = images[row] or b"", paths[row].rpartition(".")[2].lower()
                sample.members = {sample.ext: sample.image} if members else {}
            yield sample


def read_one(pool: Pool, shard: Shard, row: int, offset: int, nbytes: int) -> bytes | None:
    """The image of a row."""
    return _read(pool, shard, [row])[0] if row < len(shard.files) else None


def make_keys(paths: Sequence[str]) -> list[str]:
    """A key for each path of a slice, all different."""
    stems = [path[: path.rindex(".")] for path in paths]
    times, names = Counter(stems), set(paths)
    return [stem if times[stem] == 1 and stem not in names else path for stem, path in zip(stems, paths, strict=True)]


def _read(pool: Pool, shard: Shard, rows: Sequence[int]) -> list[bytes | None]:
    fs, folder = open_location(shard.url, pool.sources[shard.source].storage)
    return read_files(fs, [f"{folder}/{shard.files[row][0]}" for row in rows], pool.max_member_bytes)


def _label(path: str) -> dict[str, str] | None:
    folders = path.split("/")[:-1]
    return {"label": folders[-1]} if folders else None
