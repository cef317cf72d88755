"""What a plan says a run will take, over what the run then takes; and the plan for a pool of any size.

    python -m benchmarks.plan [--only demo | cifar10] [--data ../shared/data/cifar10]
    python -m benchmarks.plan --pairs 12.8e9 --gpus 64 [--cpus 2048] [--gpu h100] [--chunk 1024] [--json]

The first form plans and runs two curations through the command line, in fresh workspaces: that of jobs/demo.yaml on the
pool that the demo generates (its filter with random weights, which cost the same), and examples/cifar10.yaml. Bytes are
those of the files of each step. CPU time and memory are read from /proc every 0.1 s for all processes of the run, those
of Ray and the starting of workers included; the memory of a process is what is resident without the shared pages of
Ray's object store. The figures to hold: bytes and memory within 25 %, hours within a factor of 2.

The second form samples a small generated pool (JPEGs of 480 x 360 with captions and DataComp's metadata) and plans for
so many of such pairs, in shards of 10,000, the config that stands below.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.curation import descendants
from operators.hashing import generator
from pipeline.console import print_table
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.listing import list_shards
from pipeline.plan.machines import Machines
from pipeline.plan.plan import Plan, add_up, all_needs
from pipeline.plan.rates import measure_rates
from pipeline.plan.reuse import Found
from pipeline.plan.sample import sample_pool
from pipeline.plan.table import as_json, print_plan, size
from pipeline.pool_plan import PoolSettings

ROOT = Path(__file__).parents[1]
CPUS_PER_GPU = 32
SAMPLES_PER_SHARD = 10_000
SCALE: dict[str, Any] = {
    "models": {"clip": {"library": "open_clip", "name": "ViT-B-32", "weights": "random"}},
    "steps": [
        {"step": "score", "name": "alignment", "model": "clip"},
        {"step": "rules", "min_side": 200, "max_aspect": 3.0, "min_words": 3, "min_chars": 6},
        {"step": "exact_dedup"},
        {"step": "filter", "score": "alignment", "keep_fraction": 0.15},
        {"step": "semantic_dedup", "model": "clip", "clusters": 50_000, "epsilon": 0.05, "points_per_cluster": 1_000},
        {
            "step": "prune",
            "method": "dbp",
            "model": "clip",
            "clusters": 50_000,
            "keep_fraction": 0.4,
            "points_per_cluster": 1_000,
        },
    ],
}


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        cpu_seconds: of all its processes.
        wall_seconds: from start to end.
        worker_bytes: of the largest worker at its peak.
        driver_bytes: of the driver at its peak.
        processes: that there were.
    """

    cpu_seconds: float
    wall_seconds: float
    worker_bytes: int
    driver_bytes: int
    processes: int


def measure(command: list[str]) -> Measured:
    """Runs a command and watches it and all that it starts."""
    ticks = os.sysconf("SC_CLK_TCK")
    seconds: dict[int, float] = {}
    peaks: dict[int, int] = {}
    workers: set[int] = set()
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:
            for process in [child.pid, *descendants(child.pid)]:
                with contextlib.suppress(OSError, IndexError, KeyError):  # it has just ended
                    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                    seconds[process] = (int(fields[11]) + int(fields[12])) / ticks
                    peaks[process] = max(peaks.get(process, 0), resident(process))
                    if Path(f"/proc/{process}/comm").read_text().startswith("ray::"):
                        workers.add(process)
            time.sleep(0.1)
        assert child.returncode == 0, f"{command} ended with {child.returncode}"
    wall = time.monotonic() - started
    largest = max(peaks[process] for process in workers)
    return Measured(sum(seconds.values()), wall, largest, peaks[child.pid], len(seconds))


def resident(process: int) -> int:
    """Bytes of a process's own memory and of the files that it has mapped."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))


def demo_config(folder: Path) -> dict[str, Any]:
    """The curation of the demo, on a pool that is generated in a folder."""
    generate_pool(folder, PoolSettings(samples=6_000, seed=0), processes=os.cpu_count() or 1)
    whole = yaml.safe_load((ROOT / "jobs/demo.yaml").read_text())
    (folder / "towers.json").write_text(json.dumps(whole["towers"]))
    config = {name: value for name, value in whole.items() if name in Curation.model_fields}
    config["pool"]["path"] = str(folder / "pool")
    config["models"]["dfn"] |= {"name": str(folder / "towers.json"), "weights": "random"}
    return config


def cifar_config(data: Path) -> dict[str, Any]:
    """The example's config, on the data."""
    config = yaml.safe_load((ROOT / "examples/cifar10.yaml").read_text())
    config["pool"]["path"] = str(data.absolute() / "train-*.parquet")
    return config


def compare(name: str, config: dict[str, Any], folder: Path) -> None:
    """Plans and runs a config, and prints both."""
    config["workspace"] = str(folder / "work")
    for i, target in enumerate(config["export"]):
        target["path"] = str(folder / f"export{i}" / ("subset.npy" if target["format"] == "uids" else ""))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs.main", "curate", str(path)]
    planned = json.loads(subprocess.run([*command, "--dry-run", "--json"], cwd=ROOT, check=True, stdout=-1).stdout)
    taken = measure(command)
    rows = []
    exports = [folder / f"export{i}" for i in range(len(config["export"]))]
    for step in planned["steps"]:
        if stored := step["work"]["stored"]:
            where = [exports.pop(0)] if step["kind"] == "export" else sorted((folder / "work").glob(f"{step['name']}*"))
            where = [place for place in where if place.name in (step["name"], f"{step['name']}.clusters")] or where
            got = sum(file.stat().st_size for place in where for file in place.rglob("*") if file.is_file())
            rows.append((step["name"], round(stored), got, stored / got))
    total = [sum(column) for column in list(zip(*rows, strict=True))[1:3]]
    rows.append(("all", *total, total[0] / total[1]))
    print(f"\n{name}: bytes that a step leaves")
    print_table(("step", "planned", "measured", "ratio"), rows)
    print(f"\n{name}: the whole run, {taken.processes} processes, {taken.wall_seconds:.0f} s")
    work = planned["total"]
    driver = next(step["work"]["worker_bytes"] for step in planned["steps"] if step["kind"] == "start")
    print_table(
        ("what", "planned", "measured", "ratio"),
        [
            ("CPU seconds", work["cpu_seconds"], taken.cpu_seconds, work["cpu_seconds"] / taken.cpu_seconds),
            (
                "largest worker, MB",
                *(x / 1e6 for x in (work["worker_bytes"], taken.worker_bytes)),
                work["worker_bytes"] / taken.worker_bytes,
            ),
            ("driver, MB", driver / 1e6, taken.driver_bytes / 1e6, driver / taken.driver_bytes),
        ],
    )


@contextlib.contextmanager
def small_pool(samples: int = 288) -> Iterator[str]:
    """A pool of photograph-like JPEGs with captions and metadata like DataComp's."""
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(3):
            with tarfile.open(f"{folder}/{shard:08d}.tar", "w") as tar:
                for i in range(shard, samples, 3):
                    for extension, data in members(i).items():
                        info = tarfile.TarInfo(f"{i:012d}.{extension}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        yield folder


def members(number: int) -> Mapping[str, bytes]:
    """The files of one sample: a JPEG of some 35 kB, with structure at every scale."""
    rng = generator(number, "plan")
    image = Image.new("RGB", (480, 360))
    for side in (4, 16, 64, 240):
        noise = rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        image = Image.blend(image, Image.fromarray(noise).resize(image.size, Image.Resampling.BICUBIC), 0.4)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=60)
    words = [f"{rng.integers(26**3):x}" for _ in range(10)]
    record = {
        "uid": rng.bytes(16).hex(),
        "url": f"https://example.org/{rng.bytes(12).hex()}/{number}.jpg",
        "sha256": rng.bytes(32).hex(),
        "original_width": int(rng.integers(200, 2000)),
        "original_height": int(rng.integers(200, 2000)),
    }
    return {"jpg": sink.getvalue(), "json": json.dumps(record).encode(), "txt": " ".join(words).encode()}


def plan_pairs(pairs: int, machines: Machines, chunk: int) -> Plan:
    """The plan for so many pairs like those of the small pool, with `SCALE`, in chunks of so many."""
    with small_pool() as folder:
        pool = {"format": "webdataset", "path": f"{folder}/*.tar", "chunk_samples": chunk}
        export = [{"format": "uids", "path": f"{folder}/subset.npy"}]
        own = {"pool": pool, "workspace": f"{folder}/work", "export": export, "report": False}
        config = Curation.model_validate({**SCALE, **own})
        needs = all_needs(config)
        sampled = sample_pool(config.pool, list_shards(config.pool), config.models, needs)
        rates = measure_rates(sampled, config.models, needs, machines, {}, numeric=True)
        shards = -(-pairs // SAMPLES_PER_SHARD)
        return add_up(config, sampled.scaled(pairs, shards), rates, machines, Found(()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("demo", "cifar10"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/cifar10")
    parser.add_argument("--pairs", type=float, help="plan for so many, and run nothing")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--cpus", type=int, help=f"default: {CPUS_PER_GPU} for each GPU")
    parser.add_argument("--chunk", type=int, default=128, help="samples that travel together")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.pairs:
        machines = Machines(args.cpus or CPUS_PER_GPU * args.gpus, args.gpus, args.gpu)
        plan = plan_pairs(round(args.pairs), machines, args.chunk)
        if args.json:
            print(json.dumps(as_json(plan), indent=4))
            return
        print_plan(plan)
        print(f"through Ray's object stores: {size(plan.total.shuffled)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("demo", "cifar10"):
            if args.only in (None, name):
                home = Path(folder, name)
                home.mkdir()
                compare(name, demo_config(home) if name == "demo" else cifar_config(args.data), home)


if __name__ == "__main__":
    main()
