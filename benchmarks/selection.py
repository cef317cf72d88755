"""Exact selection of the best rows of 20 million: what it costs in time and memory, and how that grows.

    python -m benchmarks.selection [--rows 20000000] [--groups 500] [--actors 2] [--repeats 3] [--doublings 3]

Generated keys (a value, of which some tie, and a uid a row, in groups), of which each group keeps a third, go through
the real `pipeline.selection.exact_cutoffs`. The baselines hold all rows in one process: numpy's lexsort of everything,
which is exact, and its partition by value alone, which leaves ties open and so keeps too many. All read the same files,
within the time that is taken; starting the actors is in it, starting Ray is not.

Every measurement is a process of its own, and they are interleaved. Memory is the peak of resident memory: of the
driver above what it had before, of the largest actor with all that it imports. The figures to hold at 20 million rows
are 200 MB and 1 GB. `--doublings` puts the same for a half, a quarter, an eighth, ... of the rows before it.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import ray
from numpy.typing import NDArray

from operators.hashing import generator
from operators.selection import Keys, order_key
from pipeline.selection import exact_cutoffs

ROWS_PER_PART = 1_000_000
MB = 2**20

Ints = NDArray[np.int64]
Figures = dict[str, float | str]


def write_parts(folder: Path, rows: int, groups: int) -> None:
    """Writes keys in parts, a file for each word of them, and a third of each group's size as its quota."""
    sizes_G = np.zeros(groups, np.int64)
    for part, start in enumerate(range(0, rows, ROWS_PER_PART)):
        rng, size = generator(part, "selection"), min(ROWS_PER_PART, rows - start)
        value_N = np.round(rng.normal(0.25, 0.05, size), 6)  # some tie
        high_N, low_N = rng.integers(0, 2**64 - 1, (2, size), dtype=np.uint64, endpoint=True)
        group_N = rng.integers(0, groups, size, dtype=np.int32)
        keys = Keys(group_N, order_key(value_N, descending=True), high_N, low_N)
        (folder / f"{part:05d}").mkdir()
        for name, words_N in keys._asdict().items():
            np.save(folder / f"{part:05d}" / f"{name}.npy", words_N)
        sizes_G += np.bincount(group_N, minlength=groups)
    np.save(folder / "quotas.npy", sizes_G // 3)


def read_part(folder: Path) -> Keys:
    return Keys(*(np.load(folder / f"{name}.npy") for name in Keys._fields))


def read_all(folder: Path) -> Keys:
    parts = [read_part(part) for part in sorted(folder.glob("[0-9]*"))]
    return Keys(*map(np.concatenate, zip(*parts, strict=True)))


def select(folder: Path, quotas_G: Ints, actors: int) -> NDArray[np.uint64]:
    loaders = [partial(read_part, part) for part in sorted(folder.glob("[0-9]*"))]
    last_G3: NDArray[np.uint64] = exact_cutoffs(loaders, quotas_G, actors).last_G3
    return last_G3[:, 0]


def sort(folder: Path, quotas_G: Ints, actors: int) -> NDArray[np.uint64]:
    """All rows by (group, value, uid); the last row that each group keeps."""
    keys = read_all(folder)
    order_N = np.lexsort((keys.low_N, keys.high_N, keys.value_N, keys.group_N))
    starts_G = np.searchsorted(keys.group_N[order_N], np.arange(quotas_G.size))
    return keys.value_N[order_N[starts_G + quotas_G - 1]]


def partition(folder: Path, quotas_G: Ints, actors: int) -> NDArray[np.uint64]:
    """The value of the last row of each group; whatever ties with it would be kept as well."""
    keys = read_all(folder)
    order_N = np.argsort(keys.group_N, kind="stable")
    ends_G = np.cumsum(np.bincount(keys.group_N, minlength=quotas_G.size))[:-1]
    split = np.split(keys.value_N[order_N], ends_G)
    return np.array([np.partition(x_n, quota - 1)[quota - 1] for x_n, quota in zip(split, quotas_G, strict=True)])


WAYS: dict[str, Callable[[Path, Ints, int], NDArray[np.uint64]]] = {
    "exact_cutoffs": select,
    "np.lexsort": sort,
    "np.partition": partition,
}


def measure(way: str, folder: Path, actors: int) -> Figures:
    """One selection, in this process and below it."""
    if way == "exact_cutoffs":
        ray.init(num_cpus=actors, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    quotas_G = np.load(folder / "quotas.npy")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, watch = memory_peak(os.getpid()), ActorWatch()
    started = time.perf_counter()
    last_G = WAYS[way](folder, quotas_G, actors)
    seconds = time.perf_counter() - started
    cutoffs = hashlib.sha256(last_G.tobytes()).hexdigest()
    driver, actor = memory_peak(os.getpid()) - before, watch.stop()
    return {"seconds": seconds, "driver": driver / MB, "actor": actor / MB, "cutoffs": cutoffs}


def memory_peak(pid: int) -> int:
    """Bytes of a process's peak of resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def below(pid: int) -> Iterator[int]:
    """The ids of a process's children, of theirs, and so on."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from below(child)


class ActorWatch:
    """Looks at the peak of every selecting actor below this process, ten times a second."""

    def __init__(self) -> None:
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        """The largest peak that any of them had, in bytes."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            try:
                for pid in below(os.getpid()):
                    if b"KeyHolder" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        self._peak = max(self._peak, memory_peak(pid))
            except (OSError, StopIteration):  # one of them has just ended
                continue


def apart(way: str, folder: Path, actors: int) -> Figures:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.selection", "--way", way, "--folder", str(folder)]
    done = subprocess.run([*command, "--actors", str(actors)], check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(folder: Path, rows: int, options: argparse.Namespace) -> None:
    """Prints a line for each way of selecting the same rows."""
    write_parts(folder, rows, options.groups)
    found: dict[str, list[Figures]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            found[way].append(apart(way, folder, options.actors))
    assert len({figures["cutoffs"] for runs in found.values() for figures in runs}) == 1
    ours = median(float(figures["seconds"]) for figures in found["exact_cutoffs"])
    for way, runs in found.items():
        seconds = median(float(figures["seconds"]) for figures in runs)
        driver, actor = (max(float(figures[name]) for figures in runs) for name in ("driver", "actor"))
        print(f"{rows:>12,}  {way:<14}{seconds:>8.2f}{seconds / ours:>7.2f}{driver:>11.0f}{actor:>11.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 20_000_000), ("groups", 500), ("actors", 2), ("repeats", 3), ("doublings", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--way", choices=WAYS, help="measure only this, here, and print it as JSON")
    parser.add_argument("--folder", type=Path, help="of the keys, for --way")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.folder, options.actors)))
        return
    print(f"{'rows':>12}  {'way':<14}{'seconds':>8}{'ratio':>7}{'driver MB':>11}{'worker MB':>11}")
    for halvings in reversed(range(options.doublings + 1)):
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), options.rows >> halvings, options)


if __name__ == "__main__":
    main()
