"""Reads shards that were made bad in a thousand ways, in a process of its own, and accounts for every sample.

    python -m tests.faults.fuzz [--seeds 20] [--first 0] [--every 1]

Prints a table of what became of the mutations. Ends with an error that names the mutation when one crashes the reader,
takes longer than `SECONDS`, loses or doubles a row, or changes a sample that it did not touch; and when all of them
together took more memory than `MEMORY`.
"""

import argparse
import itertools
import resource
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from operators.encoders.settings import PixelsSettings
from operators.errors import UserError
from operators.rejects import Damage, Reason
from pipeline.listing import list_shards
from pipeline.payload import pack, unpack
from pipeline.pool import Pool
from pipeline.storage import Store
from pipeline.stream.chunks import decode_chunk, read_chunks
from pipeline.stream.work import Need, Pass, ShardWork
from tests.faults.mutations import MAX_MEMBER_BYTES, MAX_PIXELS, NUM_SAMPLES, Mutation, mutations, samples, tar

SECONDS = 20
MEMORY = 64 * 2**20
"""Bytes that bad shards may take on top of what a sound one does."""
_NEED = Need("raw", "image", "raw.image/0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--every", type=int, default=1, help="try one mutation of so many")
    options = parser.parse_args()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound, damage = rows_of(folder, Mutation("none", "sound.tar", tar(samples())))
        assert len(sound) == NUM_SAMPLES, sound
        assert damage is None, damage
        assert all(row["reason"] is None for row in sound.values()), sound
        before = _peak()
        for seed in range(options.first, options.first + options.seeds):
            for mutation in itertools.islice(mutations(seed), seed % options.every, None, options.every):
                found[judge(folder, mutation, sound)] += 1
        grown = _peak() - before
    for outcome, count in found.most_common():
        print(f"{count:8,}  {outcome}")
    print(f"{found.total():8,}  mutations; no sample lost, none twice; {grown / 2**20:.0f} MiB above a sound shard")
    if grown > MEMORY:
        sys.exit(
            f"bad shards must take at most {MEMORY / 2**20:.0f} MiB more than a sound one, got {grown / 2**20:.0f}"
        )


def judge(folder: Path, mutation: Mutation, sound: dict[str, dict[str, Any]]) -> str:
    """What became of a mutated shard; an error that names it when that is not allowed."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        rows, damage = rows_of(folder, mutation)
        for key in mutation.untouched:
            assert rows.get(key) == sound[key], f"{key} must be as it was, got {rows.get(key)}"
    except BaseException as error:
        error.add_note(f"mutation: {mutation.name}")
        if isinstance(error, UserError) and mutation.file.endswith(".parquet"):
            return "refused with a message: its columns are not what they were"
        raise
    finally:
        signal.alarm(0)
    reasons = sorted({row["reason"] for row in rows.values() if row["reason"]})
    return ", ".join([*reasons, *([f"shard {damage}"] if damage else [])]) or "kept"


def rows_of(folder: Path, mutation: Mutation) -> tuple[dict[str, dict[str, Any]], Damage | None]:
    """Reads and decodes a shard as a pass does; gives its rows by key, each of which must be there once, and damage."""
    place = folder / mutation.file
    place.write_bytes(mutation.data)
    form = "parquet" if place.suffix == ".parquet" else "webdataset"
    limits = {"max_pixels": MAX_PIXELS, "max_member_bytes": MAX_MEMBER_BYTES, "chunk_samples": 4}
    pool = Pool.model_validate({"format": form, "path": str(place), **limits})
    (shard,) = list_shards(pool)
    job = Pass(Store(str(folder)), pool, "samples/0", {"raw": PixelsSettings(library="pixels", size=4)}, "pieces")
    work = ShardWork(shard, "0", None, None, None, ((_NEED, "0"),))
    tables, end, covered = [], None, 0
    for row in read_chunks(job, {"work": pack(work)}):
        start, stop, table, _, _, _, end = unpack(decode_chunk(job, row)["payload"])
        assert start == covered, f"rows must follow one another, got {start} after {covered}"
        covered = stop
        if table is not None:
            tables.append(table)
    assert end is not None, "a shard must say how it ended"
    assert covered == end.rows, f"{end.rows} rows must be covered, got {covered}"
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    assert [row["row"] for row in rows] == list(range(end.rows)), "every row must be there once"
    by_key = {row["key"]: row for row in rows}
    assert len(by_key) == len(rows), "keys must be unique"
    assert all(row["reason"] is None or Reason(row["reason"]) for row in rows)
    same = ("caption", "image_hash", "reason", "metadata", "width", "height", "ext")
    return {key: {name: row[name] for name in same} for key, row in by_key.items()}, end.damage


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _too_long(*_: object) -> None:
    raise TimeoutError(f"a shard must be read within {SECONDS} s")


if __name__ == "__main__":
    main()
