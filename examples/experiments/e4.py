"""E4: how much to keep. The filter network's share is swept past the pool's own share of true captions.

    python -m examples.experiments.e4 --data ../shared/data/cifar10 [--scale tiny|small|full] [--folder FOLDER]

Trains the filter network of E1 unless it is there, keeps a fifth, ... nine tenths of the pool by its cosine, and trains
on each. All its numbers are in <folder>/e4.json, and drawn in e4.svg.
"""

import argparse
from dataclasses import asdict

from examples.experiments.cifar import SCALES, arguments, configure, prepare
from examples.experiments.filters import comparison, filtered
from examples.experiments.measures import draw_accuracies, qualities, show, write_drawing, write_record
from pipeline.comparison.compare import run_comparison
from pipeline.engine import Resources, engine
from pipeline.training.settings import Training
from pipeline.training.trainer import run_training

PERCENTS = (20, 40, 50, 60, 70, 80, 90)


def run(args: argparse.Namespace) -> None:
    """Runs the experiment."""
    scale, folder = SCALES[args.scale], args.folder
    prepare(args.data, folder, scale)
    with engine(Resources(workers=args.cpus)) as workers:
        model = run_training(configure("dfn", Training, folder, scale.network)).model_path
        swept = {f"keep_{percent}": filtered("alignment", "dfn", percent / 100) for percent in PERCENTS}
        config = comparison(args, "e4", {"dfn": model}, {"unfiltered": [], **swept})
        result = run_comparison(config)
        found = qualities(config, workers)
    show(result, found)
    write_drawing(folder / "e4.svg", draw_accuracies(result.tasks[0], result.baseline))
    quality = {name: asdict(value) for name, value in found.items()}
    write_record(folder / "e4.json", {"quality": quality, "comparison": asdict(result)})


if __name__ == "__main__":
    run(arguments(__doc__))
