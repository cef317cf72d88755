"""How time falls with workers: embedding, k-means and deduplication on 1, 2 and 4 of this machine's cores.

    python -m benchmarks.scaling [--only embed kmeans dedup] [--workers 1 2 4] [--repeats 3] [--scale 1.0]

The same work is done by 1 worker and by w, each time in a process of its own that is held, with the Ray that it starts
and the driver, to as many cores. Efficiency is the time of 1 worker over w times that of w. In every round each number
of workers has its turn, and efficiencies are those of one round; medians are printed, and the range.

The ceiling is what the machine itself allows: w processes at once, which know nothing of each other, each with one
worker, a core, and the whole work to itself. What they lose to one such process alone is lost to memory, caches and
clocks that cores share; what w workers lose beyond that is lost to us.

    embed   a pass over tars with open_clip's ViT-B/32: read, decode, encode, publish
    kmeans  iterations over rows of 512 numbers and 1,000 clusters, by one actor of one thread a worker
    dedup   the step `semantic_dedup` over embeddings of 256 numbers: its k-means, shuffle, comparisons and verdicts

At scale 1 one worker takes 13 to 120 s of each. Start-up is not counted: the rate of `embed` is that of the time in
which every encoder has chunks, but for its first ones, iterations are timed from the end of the first, and the time of
a short `dedup` is taken off that of a long one. Time that the host of a virtual machine gave to others ("steal") is
taken off, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.curate import curate
from pipeline.curation import Curation
from pipeline.engine import Resources, engine
from pipeline.listing import list_shards
from pipeline.progress import Progress, StepProgress

BATCH = 16
"""Images of a shard, of a chunk and of a forward pass."""
IMAGES = 768
_WARM = 3
"""Chunks a worker that are not timed, at the start."""
ROWS, ITERATIONS, CLUSTERS = 600_000, 8, 1_000
"""With 250,000 an iteration of four workers took 0.4 s, and what is done between iterations showed."""
SHORT_ROWS, DEDUP_ROWS = 160_000, 640_000
"""With both runs this large each starts as many processes as there are workers, so that starts cancel."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the work; 0.05 to see it run")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, folder = options.measure
        print(json.dumps(unstolen(what, Path(folder))))
        return
    cores = sorted(os.sched_getaffinity(0))
    counts = sorted({1, *(count for count in options.workers if count <= len(cores))})
    with tempfile.TemporaryDirectory() as folder:
        for what in options.only:
            home = Path(folder, what)
            home.mkdir()
            PREPARE[what](home, options.scale)
            compare(what, home, [cores[:count] for count in counts], options.repeats)


def compare(what: str, folder: Path, allotments: Sequence[Sequence[int]], repeats: int) -> None:
    """Measures one piece of work on each set of cores, and on each core of a set at once, and prints what came out.

    Args:
        what: its name.
        folder: what it works on.
        allotments: sets of cores, of which the first has one.
        repeats: rounds.
    """
    taken: dict[int, list[float]] = {}
    ours: dict[int, list[float]] = {}
    ceiling: dict[int, list[float]] = {}
    for number in range(repeats):
        for cores in allotments:
            count = len(cores)
            taken.setdefault(count, []).append(measure(what, folder, cores))
            alone = taken[1][-1]
            ours.setdefault(count, []).append(alone / count / taken[count][-1])
            print(f"  round {number + 1}: {count} workers {taken[count][-1]:.1f} s", end="", flush=True)
            if count > 1:
                with ThreadPoolExecutor(count) as pool:
                    apart = list(pool.map(lambda core: measure(what, folder, [core]), cores))
                ceiling.setdefault(count, []).append(alone / statistics.mean(apart))
                print(f", {count} processes apart {statistics.mean(apart):.1f} s", end="", flush=True)
            print(flush=True)
    for count, seconds in taken.items():
        line = f"{what:7} {count:2} workers {statistics.median(seconds):7.1f} s   efficiency {_spread(ours[count])}"
        if count > 1:
            reached = statistics.median(mine / best for mine, best in zip(ours[count], ceiling[count], strict=True))
            line += f"   {count} processes apart {_spread(ceiling[count])}   of that {reached:.2f}"
        print(line, flush=True)


def measure(what: str, folder: Path, cores: Sequence[int]) -> float:
    """Seconds of one piece of work by as many workers as there are cores, in a process that is held to them."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--measure", what, str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def unstolen(what: str, folder: Path) -> float:
    """Seconds of a piece of work on the cores of this process, less the share that the host gave to others."""
    cores = os.sched_getaffinity(0)
    started, before = time.perf_counter(), _stolen(cores)
    seconds = MEASURES[what](folder, len(cores))
    share = (_stolen(cores) - before) / (len(cores) * (time.perf_counter() - started))
    return seconds * (1 - share)


def _stolen(cores: Collection[int]) -> float:
    """Seconds that a virtual machine's cores had work and were not run, all together."""
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    times = {row[0]: row for row in rows if row[0].startswith("cpu")}
    return sum(int(times[f"cpu{core}"][8]) for core in cores) / os.sysconf("SC_CLK_TCK")


def prepare_embed(folder: Path, scale: float) -> None:
    """Tars of one batch each."""
    from benchmarks.pipeline import photo_like, write_tars

    count = BATCH * max(2 * _WARM * len(os.sched_getaffinity(0)), round(scale * IMAGES / BATCH))
    with ThreadPoolExecutor() as threads:
        write_tars(folder, list(threads.map(photo_like, range(count))), num_shards=count // BATCH)


def measure_embed(folder: Path, workers: int) -> float:
    """What all images take at the rate of those after the first chunks and before the last."""
    from benchmarks.pipeline import pass_seconds

    clock = _Clock()
    with engine(Resources(workers=workers)):
        pass_seconds(folder, workers, clock)
    every = workers * BATCH
    images = clock.ends[-1][1]
    steady = [end for end in clock.ends if _WARM * every <= end[1] <= images - every]
    (started, before), (ended, rows) = steady[0], steady[-1]
    return images * (ended - started) / (rows - before)


class _Clock(Progress):
    """Shows nothing, and keeps when how many rows were done."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[float, int]] = []

    def advanced(self, step: StepProgress) -> None:
        self.ends.append((self.clock(), step.rows))


def prepare_kmeans(folder: Path, scale: float) -> None:
    """Rows as embeddings have them."""
    from benchmarks.kmeans import mixture

    np.save(folder / "rows.npy", mixture(max(2 * CLUSTERS, round(scale * ROWS)), 512))


def measure_kmeans(folder: Path, workers: int) -> float:
    """All iterations but the first, scaled to all."""
    from benchmarks.kmeans import run_actors

    options = Namespace(actors=workers, threads=workers, clusters=CLUSTERS, iterations=ITERATIONS)
    with engine(Resources(workers=workers)):
        seconds, _ = run_actors(np.load(folder / "rows.npy"), options)
    return ITERATIONS * seconds


def prepare_dedup(folder: Path, scale: float) -> None:
    """Embeddings of which a fifth are near duplicates, few and many."""
    from benchmarks.curation import write_pool

    for name, rows in (("short", SHORT_ROWS), ("long", SHORT_ROWS + round(scale * DEDUP_ROWS))):
        write_pool(folder / name, rows, 256)


def measure_dedup(folder: Path, workers: int) -> float:
    """By how much the step takes longer on the many, once processes have started."""
    with engine(Resources(workers=workers)):
        _, short, long = (_dedup_seconds(folder / name, workers) for name in ("short", "short", "long"))
    return long - short


def _dedup_seconds(pool: Path, workers: int) -> float:
    step = {"step": "semantic_dedup", "model": "clip", "clusters": 200, "epsilon": 0.02}
    with tempfile.TemporaryDirectory() as workspace:
        config = Curation.model_validate(
            {
                "pool": {"format": "clip_retrieval", "path": str(pool)},
                "workspace": workspace,
                "models": {"clip": {"library": "stored", "image": "img_emb"}},
                "steps": [step],
                "report": False,
            }
        )
        summary = curate(config, list_shards(config.pool), workers=workers, progress=Progress())
    (seconds,) = (done.seconds for done in summary.steps if done.name == "semantic_dedup")
    return seconds


def _spread(efficiencies: Sequence[float]) -> str:
    return f"{statistics.median(efficiencies):.2f} ({min(efficiencies):.2f} to {max(efficiencies):.2f})"


PREPARE = {"embed": prepare_embed, "kmeans": prepare_kmeans, "dedup": prepare_dedup}
MEASURES = {"embed": measure_embed, "kmeans": measure_kmeans, "dedup": measure_dedup}


if __name__ == "__main__":
    main()
