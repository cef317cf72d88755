"""Peak memory of k-means workers, above what their imports take, over the bytes of their part of the embeddings.

    python -m benchmarks.kmeans_memory [--rows 5000000 --dim 256 --clusters 1000 --workers 2 --init random]

Writes the rows as an embedding artifact of many parts into a temporary workspace (2.5 GB) and runs k-means over them as
a step would: same loaders, same actors. An actor notes its resident memory when it starts, and its peak (`VmHWM`)
after each iteration.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipeline import kmeans
from pipeline.artifact import Artifact, publish_part
from pipeline.clustering import KMeansSettings
from pipeline.columns import embedding_field, fixed_binary
from pipeline.kmeans_worker import Worker
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.run import Plan, Read, Run
from pipeline.steps.clusters import load
from pipeline.storage import Store

PART_ROWS = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 5_000_000), ("dim", 256), ("clusters", 1000), ("iterations", 2), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--init", default="random")
    parser.add_argument("--points-per-cluster", type=int)
    options = parser.parse_args()
    settings = KMeansSettings(
        clusters=options.clusters,
        iterations=options.iterations,
        init=options.init,
        points_per_cluster=options.points_per_cluster,
    )
    ray.init(num_cpus=options.workers, object_store_memory=400_000_000, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        plan = write(Path(folder), options)
        measured = Path(folder) / "measured"
        measured.mkdir()
        kmeans.Worker = measuring(measured)  # type: ignore[attr-defined, misc]
        started = time.perf_counter()
        groups = plan.groups(options.workers)
        kmeans.fit(plan.blocks(groups, load), settings, seed=0, threads=1)
        seconds = time.perf_counter() - started
        part_bytes = max(sum(unit.rows for unit in group) for group in groups) * options.dim * 2
        for path in sorted(measured.iterdir()):
            imports, peak = map(int, path.read_text().split())
            print(
                f"{options.init}: worker of {part_bytes / 1e6:,.0f} MB: peak {(peak - imports) / 1e6:,.0f} MB above "
                f"{imports / 1e6:,.0f} MB after imports, {(peak - imports) / part_bytes:.2f} x its part",
                flush=True,
            )
    print(f"{len(groups)} workers, {seconds:.0f} s with reading")


def memory(field: str) -> int:
    """Bytes, as Linux counts them for this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def measuring(folder: Path) -> type[Worker]:
    """The worker, noting its memory at the start and its peak after each step."""

    class Measured(Worker):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            self._path = folder / str(os.getpid())
            self._imports = memory("VmRSS")

        def step(self, *args: object) -> object:  # type: ignore[override]
            answer = super().step(*args)  # type: ignore[arg-type]
            self._path.write_text(f"{self._imports} {memory('VmHWM')}")
            return answer

    return Measured


def write(folder: Path, options: argparse.Namespace) -> Plan:
    """Parts of random unit rows with their uids, and the plan of a step that reads them."""
    store = Store(str(folder))
    uid, embedding = pa.field("uid", pa.binary(16)), embedding_field("embedding", options.dim)
    parts: dict[str, list[Part]] = {"samples": [], "clip.image": []}
    random = np.random.default_rng(0)
    for start in range(0, options.rows, PART_ROWS):
        num_rows = min(PART_ROWS, options.rows - start)
        x_ND = random.standard_normal((num_rows, options.dim), dtype=np.float32)
        x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
        columns = {
            "samples": (uid, fixed_binary(uids(start, num_rows))),
            "clip.image": (embedding, fixed_binary(x_ND.astype(np.float16))),
        }
        for name, (field, column) in columns.items():
            table = pa.table([column], schema=pa.schema([field]))
            draft = Part(f"{start:08}.tar", f"{start:08}", "", 0, 0, "")
            parts[name].append(publish_part(store, f"{name}/x", draft, [table], table.schema))
    run = Run(store, Pool.model_validate({"format": "parquet", "path": str(folder)}), [], 0, {}, 1, 1, Progress())
    run.artifacts = {name: Artifact(name, f"{name}/x", tuple(found)) for name, found in parts.items()}
    reads = [
        Read(run.artifacts[name], {column: column})
        for name, column in (("samples", "uid"), ("clip.image", "embedding"))
    ]
    return run.plan("clusters", {}, reads, reduces=True)


def uids(start: int, num_rows: int) -> NDArray[np.uint64]:
    halves_N2 = np.zeros((num_rows, 2), dtype=np.uint64)
    halves_N2[:, 1] = np.arange(start, start + num_rows)
    return halves_N2


if __name__ == "__main__":
    main()
