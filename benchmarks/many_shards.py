"""Planning, and resuming after completion, over very many small shards: seconds, and the driver's peak memory.

    python -m benchmarks.many_shards [--shards 100000] [--workers 2] [--folder DIR]

Generates a pool of tars with one sample each, plans a curation of it (`--dry-run`), reads the samples, runs the rest,
plans it again and runs it again when all is done. Each is a process of its own; its peak resident memory is that of the
driver. The figures to hold, for 100,000 shards: planning and resuming under 60 s and 500 MB each. The samples are read
by plain tasks of many shards, with the code that a run reads them with: a run takes 30 ms for each shard, however
small. With --folder, pool and workspace stay.
"""

import argparse
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

from PIL import Image

from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.embed import samples_folder, samples_id
from pipeline.engine import engine
from pipeline.listing import list_shards
from pipeline.payload import pack, unpack
from pipeline.plan.reuse import find
from pipeline.spread import spread
from pipeline.stream.chunks import decode_chunk, read_chunks
from pipeline.stream.encode import without_encoding, write_piece
from pipeline.stream.finalise import ShardReceipts, finalise_shard
from pipeline.stream.flow import new_attempt
from pipeline.stream.work import Pass, ShardWork

_PER_FOLDER = 1_000


def write_pool(folder: Path, shards: int) -> None:
    """One tar for each sample, a thousand in a folder; those that are there stay."""
    for number in range(shards):
        path = folder / f"{number // _PER_FOLDER:04d}" / f"{number:07d}.tar"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        image = io.BytesIO()
        colour = (number % 256, number // 256 % 256, number // 65_536 * 16)
        Image.new("RGB", (16, 16), colour).save(image, "PNG")
        with tarfile.open(path, "w") as archive:
            for extension, data in (("png", image.getvalue()), ("txt", f"square number {number}".encode())):
                member = tarfile.TarInfo(f"{number:07d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def curation(folder: Path, workers: int) -> Curation:
    """Two cheap steps, so that shards are what costs."""
    return Curation.model_validate(
        {
            "pool": {"format": "webdataset", "path": f"{folder}/pool/*/*.tar"},
            "workspace": f"{folder}/work",
            "steps": [{"step": "rules", "min_side": 8}, {"step": "exact_dedup"}],
            "report": False,
            "resources": {"workers": workers},
        }
    )


def read_samples(config: Curation) -> None:
    """Publishes the samples of every shard, as a pass would; a run then finds them."""
    config = config.resolved()
    shards = list_shards(config.pool)
    job = Pass(config.store, config.pool, samples_folder(config.pool), {}, new_attempt())
    works = [ShardWork(shard, samples_id(config.pool, shard), None, None, None, ()) for shard in shards]
    with engine(config.resources) as workers:
        for _ in spread(partial(read_shard, job), works, workers=workers):
            pass
    config.store.remove(job.pieces)


def read_shard(job: Pass, work: ShardWork) -> None:
    """All stations of a shard of one chunk, one after the other."""
    (chunk,) = read_chunks(job, {"work": pack(work)})
    counts, end = unpack(write_piece(job, without_encoding(decode_chunk(job, chunk)))["receipt"])
    finalise_shard(job, ShardReceipts(work, 1, counts, end))


def measure(what: str, folder: Path, workers: int) -> None:
    """Does one thing and prints what the driver needed."""
    config = curation(folder, workers)
    started = time.monotonic()
    if what == "read":
        read_samples(config)
    shards = len(find(config).shards) if what != "run" else run_curation(config).samples_seen
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"RESULT {shards:>9,} shards  {seconds:8.1f} s  driver peak {peak:6.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", choices=("plan", "read", "run"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folder, options.workers)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        write_pool(folder / "pool", options.shards)
        for title, what in (
            ("plan", "plan"),
            ("read", "read"),
            ("run", "run"),
            ("plan again", "plan"),
            ("resume", "run"),
        ):
            command = [sys.executable, "-m", "benchmarks.many_shards", "--measure", what, "--folder", str(folder)]
            command += ["--workers", str(options.workers)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            lines = [line for line in output.splitlines() if line.startswith("RESULT")]
            print(f"{title:<12}", *(line.removeprefix("RESULT") for line in lines), flush=True)


if __name__ == "__main__":
    main()
