"""E2, Fig. 4 in miniature: the filter's trusted pairs replaced by unfiltered ones, step by step.

    python -m examples.experiments.e2 --data ../shared/data/cifar10 [--scale tiny|small|full] [--folder FOLDER]

Trains a filter network on the trusted pairs with none, a quarter, ... all of them replaced by pairs as noisy as the
pool's, from the spare part, so that none of them is scored; filters the pool by each, and trains on what they keep.
All its numbers are in <folder>/e2.json, and drawn in e2_auc.svg and e2_accuracy.svg.
"""

import argparse
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from examples.experiments.cifar import SCALES, arguments, prepare, read_pairs
from examples.experiments.filters import by_filter, comparison, train_filter
from examples.experiments.measures import draw_accuracies, draw_aucs, qualities, show, write_drawing, write_record
from operators.hashing import generator
from pipeline.comparison.compare import run_comparison
from pipeline.engine import Resources, engine

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def mix(trusted: pa.Table, noisy: pa.Table, share: float, seed: int = 0) -> pa.Table:
    """Trusted pairs with a share of them replaced; of a larger share, those of a smaller one are replaced too."""
    row_N = generator(seed, "cifar", "replaced").permutation(trusted.num_rows)
    replaced = round(share * trusted.num_rows)
    return pa.concat_tables([trusted.take(pa.array(np.sort(row_N[replaced:]))), noisy.slice(0, replaced)])


def run(args: argparse.Namespace) -> None:
    """Runs the experiment."""
    prepare(args.data, args.folder, SCALES[args.scale])
    trusted, spare = (read_pairs(args.folder / name) for name in ("trusted", "spare"))
    with engine(Resources(workers=args.cpus)) as workers:
        mixed = {f"replaced_{round(100 * share)}": mix(trusted, spare, share) for share in SHARES}
        models = {name: train_filter(args, name, pairs) for name, pairs in mixed.items()}
        config = comparison(args, "e2", models, {"unfiltered": [], **by_filter(models)})
        result = run_comparison(config)
        found = qualities(config, workers)
    show(result, found)
    write_drawing(args.folder / "e2_auc.svg", draw_aucs(found))
    write_drawing(args.folder / "e2_accuracy.svg", draw_accuracies(result.tasks[0], result.baseline))
    quality = {name: asdict(value) for name, value in found.items()}
    write_record(args.folder / "e2.json", {"quality": quality, "comparison": asdict(result)})


if __name__ == "__main__":
    run(arguments(__doc__))
