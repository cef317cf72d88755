"""A full curation of generated embeddings, without images: time per step, and peak memory of driver and workers.

    python -m benchmarks.curation [--rows 1000000] [--dim 256] [--workers 4] [--without-dedup]

Writes a clip-retrieval folder of 20 files: unit rows around 1,000 directions, a fifth of them near duplicates (cosine
about 0.997) of an earlier row, half of these across files. Then it does what `winnow curate` does: reads them, drops
near duplicates, prunes by density, writes ledger, exports and report. The figure to hold: 1,000,000 rows in at most
10 minutes on 4 cores and 16 GB. Memory is sampled twice a second: the driver's resident memory, and the proportional
share (PSS, so that what processes share counts once) of everything that Ray started.
"""

import argparse
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.embeddings import to_unit_float16
from operators.hashing import generator
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.summary import print_summary

FILES = 20
DIRECTIONS = 1_000
DUPLICATES = 0.2
EPSILON = 0.02


def write_pool(folder: Path, rows: int, dim: int) -> None:
    """Writes the pool, one file after the other."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    first_ND = originals(0, rows // FILES, dim)
    for number in range(FILES):
        count = rows // FILES + (rows % FILES if number == FILES - 1 else 0)
        x_ND = originals(number, count, dim)
        plant_duplicates(x_ND, first_ND, number)
        unit_ND, _ = to_unit_float16(x_ND)
        np.save(folder / f"img_emb/img_emb_{number}.npy", unit_ND)
        start = number * (rows // FILES)
        table = pa.table(
            {
                "caption": [f"a caption of row {row}" for row in range(start, start + count)],
                "url": [f"https://example.org/{row}.jpg" for row in range(start, start + count)],
            }
        )
        pq.write_table(table, folder / f"metadata/metadata_{number}.parquet")


def originals(number: int, count: int, dim: int) -> NDArray[np.float32]:
    """The rows of one file before duplicates are planted."""
    centres_KD = generator(0, "directions").standard_normal((DIRECTIONS, dim), dtype=np.float32)
    rng = generator(number, "originals")
    return centres_KD[rng.integers(0, DIRECTIONS, count)] + 0.7 * rng.standard_normal((count, dim), dtype=np.float32)


def plant_duplicates(x_ND: NDArray[np.float32], first_ND: NDArray[np.float32], number: int) -> None:
    """Makes a fifth of the rows noisy copies of others: half of rows of this file, half of rows of the first one."""
    rng = generator(number, "duplicates")
    copies = rng.choice(len(x_ND) // 2, int(DUPLICATES * len(x_ND)), replace=False) + len(x_ND) // 2
    inside = rng.random(len(copies)) < 0.5
    sources_ND = np.where(
        inside[:, None],
        x_ND[rng.integers(0, len(x_ND) // 2, len(copies))],
        first_ND[rng.integers(0, max(1, len(first_ND) // 2), len(copies))],
    )
    x_ND[copies] = sources_ND + 0.1 * rng.standard_normal(sources_ND.shape, dtype=np.float32)


@contextlib.contextmanager
def watched_memory() -> Iterator[dict[str, int]]:
    """Peak bytes, while the block runs: `driver` of this process, `workers` of all its descendants together."""
    peaks = {"driver": 0, "workers": 0, "largest worker": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            shares = [memory_of(process, "smaps_rollup", "Pss:") for process in descendants(os.getpid())]
            driver = memory_of(os.getpid(), "status", "VmRSS:")
            now = {"driver": driver, "workers": sum(shares), "largest worker": max(shares, default=0)}
            for name, value in now.items():
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def descendants(root: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})


def memory_of(process: int, file: str, name: str) -> int:
    """Bytes that a line of /proc/<process>/<file> tells, 0 where the process has just ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
            if line.startswith(name):
                return 1024 * int(line.split()[1])
    return 0


def curation(pool: Path, workspace: Path, workers: int, rows: int, *, with_dedup: bool) -> Curation:
    """The job that is measured."""
    clusters = max(2, rows // 1_000)
    dedup = {"step": "semantic_dedup", "model": "clip", "clusters": clusters, "epsilon": EPSILON}
    dbp = {"step": "prune", "method": "dbp", "model": "clip", "clusters": min(500, clusters), "keep_fraction": 0.4}
    return Curation.model_validate(
        {
            "pool": {"format": "clip_retrieval", "path": str(pool)},
            "workspace": str(workspace),
            "models": {"clip": {"library": "stored", "image": "img_emb"}},
            "steps": [*([dedup] if with_dedup else []), dbp],
            "export": [
                {"format": "uids", "path": f"{workspace}-uids.npy"},
                {"format": "clip_retrieval", "path": f"{workspace}-kept", "model": "clip"},
            ],
            "resources": {"workers": workers},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="20,000 for a short form")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--without-dedup", action="store_true", help="prune alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder, "pool")
        write_pool(pool, args.rows, args.dim)
        config = curation(pool, Path(folder, "work"), args.workers, args.rows, with_dedup=not args.without_dedup)
        with watched_memory() as peaks:
            started = time.monotonic()
            print_summary(run_curation(config))
            seconds = time.monotonic() - started
    print(f"\n{args.rows:,} rows of {args.dim} numbers in {seconds:.1f} s on {args.workers} workers")
    for name, value in peaks.items():
        print(f"{name:<15} peak {value / 2**20:8.0f} MB")


if __name__ == "__main__":
    main()
