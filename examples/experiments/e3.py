"""E3: is the more accurate network the better filter? Networks of different data, by three measures.

    python -m examples.experiments.e3 --data ../shared/data/cifar10 [--scale tiny|small|full] [--folder FOLDER]

Trains filter networks on few and many pairs, clean and noisy ones, and measures of each its own zero-shot accuracy, how
well it finds true captions, and the accuracy of what is trained on the pairs that it keeps. All its numbers are in
<folder>/e3.json; e3.svg draws the last of them, from the most accurate network down to the least.
"""

import argparse
from dataclasses import asdict

import pyarrow as pa

from examples.experiments.cifar import SCALES, arguments, prepare, read_pairs
from examples.experiments.filters import by_filter, comparison, train_filter
from examples.experiments.measures import qualities, show, write_drawing, write_record
from pipeline.comparison.compare import run_comparison
from pipeline.comparison.results import Accuracy
from pipeline.console import print_table
from pipeline.engine import Resources, engine
from pipeline.evaluation.evaluate import run_evaluation
from pipeline.evaluation.settings import Evaluation
from pipeline.report.intervals import Line, draw_intervals
from pipeline.report.page import percent


def training_sets(trusted: pa.Table, spare: pa.Table) -> dict[str, pa.Table]:
    """Pairs to train networks on, by name; in parts of what there is."""
    whole, noisy = trusted.num_rows, spare.num_rows
    return {
        "clean": trusted,
        "clean_half": trusted.slice(0, whole // 2),
        "clean_fifth": trusted.slice(0, whole // 5),
        "noisy": spare,
        "noisy_half": spare.slice(0, noisy // 2),
        "mixed": pa.concat_tables([trusted.slice(0, whole // 2), spare]),
    }


def run(args: argparse.Namespace) -> None:
    """Runs the experiment."""
    prepare(args.data, args.folder, SCALES[args.scale])
    sets = training_sets(*(read_pairs(args.folder / name) for name in ("trusted", "spare")))
    with engine(Resources(workers=args.cpus)) as workers:
        models = {name: train_filter(args, name, pairs) for name, pairs in sets.items()}
        config = comparison(args, "e3", models, {"unfiltered": [], **by_filter(models)})
        own = Evaluation(workspace=f"{args.folder}/e3_own", models=config.models, tasks=config.evaluation)
        accuracy = {result.model: result.value for result in run_evaluation(own)}
        result = run_comparison(config)
        found = qualities(config, workers)
    show(result, found)
    task = result.tasks[0]
    print()
    rows = [(name, accuracy[name], found[name].auc, task.of(name).mean) for name in models]
    print_table(["network", "its own accuracy", "ROC AUC as a filter", "accuracy of what it selects"], rows)
    lines = [_line(task.of(name), accuracy[name]) for name in sorted(models, key=lambda name: -accuracy[name])]
    title = "what is trained on the selection of each network, by the network's own accuracy"
    write_drawing(args.folder / "e3.svg", draw_intervals(title, lines, "zero-shot accuracy"))
    quality = {name: asdict(value) for name, value in found.items()}
    write_record(args.folder / "e3.json", {"own": accuracy, "quality": quality, "comparison": asdict(result)})


def _line(found: Accuracy, own: float) -> Line:
    name = f"{percent(own, 1)} {found.selection}"
    return Line(name, found.mean, found.shown, dots=found.values, tone="kept")


if __name__ == "__main__":
    run(arguments(__doc__))
