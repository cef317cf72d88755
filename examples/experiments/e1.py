"""E1, Table 1 in miniature: six ways to filter a pool with 40 % false captions, what they find and what comes of it.

    python -m examples.experiments.e1 --data ../shared/data/cifar10 [--scale tiny|small|full] [--folder FOLDER]

Splits CIFAR-10, trains the filter network on the trusted part, and compares selections of one size: none, random, a
binary classifier on the network's embeddings, one on images, a masked autoencoder, and the network's cosine. All its
numbers are in <folder>/e1.json, and drawn in e1.svg. Running again reuses what is there; --set changes e1.yaml.
"""

import argparse
from dataclasses import asdict

from examples.experiments.cifar import SCALES, arguments, configure, prepare
from examples.experiments.measures import draw_accuracies, qualities, show, write_drawing, write_record
from pipeline.comparison.compare import run_comparison
from pipeline.comparison.settings import Comparison
from pipeline.engine import Resources, engine
from pipeline.training.settings import Training
from pipeline.training.trainer import run_training


def run(args: argparse.Namespace) -> None:
    """Runs the experiment."""
    scale, folder = SCALES[args.scale], args.folder
    prepare(args.data, folder, scale)
    with engine(Resources(workers=args.cpus)) as workers:
        run_training(configure("dfn", Training, folder, scale.network))
        config = configure("e1", Comparison, folder, scale.training, scale.filters, args.overrides)
        result = run_comparison(config)
        found = qualities(config, workers)
    show(result, found)
    task = result.tasks[0]
    write_drawing(folder / "e1.svg", draw_accuracies(task, result.baseline))
    quality = {name: asdict(value) for name, value in found.items()}
    write_record(folder / "e1.json", {"quality": quality, "comparison": asdict(result)})


if __name__ == "__main__":
    run(arguments(__doc__))
