"""How much the driver process grows with the pool: 200,000 against 2,000,000 embedding rows.

    python -m benchmarks.driver_memory [--rows 200000 2000000] [--dim 64] [--clusters 200]

For each size, a process of its own starts Ray, publishes generated `samples` and embeddings from tasks, then runs the
rest of a curation: exact duplicates, density-based pruning, the ledger. Its peak resident memory is that of the driver
alone, since all rows live in workers. The figure to hold: the larger pool needs at most 50 MB more.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
import pyarrow as pa

from operators.embeddings import to_unit_float16
from operators.hashing import generator
from pipeline.artifact import Artifact, publish_part
from pipeline.columns import embedding_field, fixed_binary
from pipeline.curate import start_run
from pipeline.curation import Curation
from pipeline.engine import engine
from pipeline.ledger_writer import write_ledger
from pipeline.parts import Part
from pipeline.pool import Shard
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.steps.unique_uid import UniqueUid
from pipeline.storage import Store
from pipeline.stream.work import SAMPLES_SCHEMA

ROWS_PER_SHARD = 50_000


def publish_shard(store: Store, dim: int, index: int) -> tuple[Part, Part]:
    """Generated rows of one shard: `samples` and unit embeddings around 100 directions."""
    rng = generator(index, "driver_memory")
    rows, name = ROWS_PER_SHARD, f"{index:05d}.tar"
    uids = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
    columns = {
        "uid": fixed_binary(uids),
        "shard": pa.array([name] * rows),
        "key": pa.array([f"{i:09d}" for i in range(rows)]),
        "row": pa.array(np.arange(rows)),
        "image_hash": fixed_binary(rng.integers(0, 256, (rows, 16), dtype=np.uint8)),
    }
    table = pa.table([columns.get(item.name, pa.nulls(rows, item.type)) for item in SAMPLES_SCHEMA], SAMPLES_SCHEMA)
    counts = {"in": rows, "kept": rows}
    samples = publish_part(store, "samples/made", Part(name, name, "", 0, 0, "", counts), [table], SAMPLES_SCHEMA)
    centres_KD = generator(0, "centres").standard_normal((100, dim))
    x_ND = centres_KD[rng.integers(0, 100, rows)] + 0.7 * rng.standard_normal((rows, dim))
    unit_ND, _ = to_unit_float16(x_ND)
    schema = pa.schema([embedding_field("embedding", dim)])
    table = pa.table([fixed_binary(unit_ND)], schema=schema)
    return samples, publish_part(store, "x.image/made", Part(name, name, "", 0, 0, "", counts), [table], schema)


def made_run(config: Curation, rows: int, dim: int, workers: int) -> Run:
    """A run whose samples and embeddings are there."""
    names = [f"{i:05d}.tar" for i in range(rows // ROWS_PER_SHARD)]
    run = start_run(config, [Shard(name, "", 0, 0, name) for name in names], workers=workers, progress=Progress())
    made = spread(partial(publish_shard, config.store, dim), range(len(names)), workers=workers)
    pairs = sorted(made, key=lambda pair: pair[0].shard)
    run.artifacts["samples"] = Artifact("samples", "samples/made", tuple(samples for samples, _ in pairs))
    run.embeddings["x", "image"] = Artifact("x.image", "x.image/made", tuple(embedding for _, embedding in pairs))
    return run


def measure(rows: int, dim: int, clusters: int) -> None:
    """Runs one size and prints what the driver needed."""
    with tempfile.TemporaryDirectory() as workspace:
        config = Curation.model_validate(
            {
                "pool": {"format": "webdataset", "path": "unused"},
                "workspace": workspace,
                "models": {"x": {"library": "pixels"}},
                "steps": [
                    {"step": "exact_dedup"},
                    {
                        "step": "prune",
                        "method": "dbp",
                        "model": "x",
                        "clusters": clusters,
                        "keep_fraction": 0.4,
                        "iterations": 5,
                    },
                ],
            }
        )
        with engine(config.resources) as workers:
            run = made_run(config, rows, dim, workers)
            started = time.monotonic()
            run.add_verdicts(UniqueUid().run(run))
            for step in config.steps:
                run.add_verdicts(step.run(run))
            write_ledger(run, run.verdicts)
            seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rows:>10,} rows  driver peak {peak:7.1f} MB  {seconds:6.1f} s", flush=True)
    print(peak, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=200)
    args = parser.parse_args()
    if len(args.rows) == 1:
        measure(args.rows[0], args.dim, args.clusters)
        return
    peaks = []
    for rows in args.rows:
        command = [sys.executable, "-m", "benchmarks.driver_memory", "--rows", str(rows)]
        command += ["--dim", str(args.dim), "--clusters", str(args.clusters)]
        done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        peaks.append(float(done.stderr.split()[-1]))
    print(f"the driver grows by {peaks[-1] - peaks[0]:.1f} MB")


if __name__ == "__main__":
    main()
