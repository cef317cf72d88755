"""E5, Table 2 and Fig. 5 in miniature: a filter fine-tuned on the evaluation's own training distribution.

    python -m examples.experiments.e5 --data ../shared/data/cifar10 [--scale tiny|small|full] [--folder FOLDER]

The base filter is trained on noisy pairs only. It is fine-tuned on the trusted pairs, with and without averaging its
weights from before and after. What each selects is held against what the base selects, and against that with the
trusted pairs themselves added to the training, by accuracy on CIFAR-10's test images and on five corruptions of them.
All numbers are in <folder>/e5.json; e5_clean.svg and e5_corrupted.svg draw them.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from examples.experiments.cifar import SCALES, arguments, configure, prepare, read_pairs, write_pairs
from examples.experiments.corruptions import CORRUPTIONS, corrupted
from examples.experiments.filters import KEPT, by_filter, comparison, train_filter
from examples.experiments.measures import draw_accuracies, qualities, show, write_drawing, write_record
from pipeline.comparison.compare import run_comparison
from pipeline.comparison.settings import Comparison
from pipeline.comparison.verdict import over_tasks
from pipeline.engine import Resources, engine
from pipeline.training.settings import Training

_CORRUPTED = 2_000
"""Test images of each corruption."""
_BASE = "base"


def run(args: argparse.Namespace) -> None:
    """Runs the experiment."""
    scale, folder = SCALES[args.scale], args.folder
    prepare(args.data, folder, scale)
    trusted, spare, pool = (read_pairs(folder / name) for name in ("trusted", "spare", "pool"))
    for number, (name, table) in enumerate((("pool", pool), ("trusted", trusted))):
        if not (folder / "e5_parts" / name).exists():
            write_pairs(folder / "e5_parts" / name, table.append_column("trusted", pa.array([number] * table.num_rows)))
    test = read_pairs(folder / "test").slice(0, _CORRUPTED)
    for kind in CORRUPTIONS:
        if not (folder / "e5_test" / kind).exists():
            write_pairs(folder / "e5_test" / kind, corrupted(test, kind))
    with engine(Resources(workers=args.cpus)) as workers:
        models = _filters(args, spare, trusted)
        config = comparison(args, "e5", models, _selections(models, scale.pool), _changes(folder))
        result = run_comparison(config)
        found = qualities(config, workers)
    worse = over_tasks(result.tasks[1:], "corrupted")
    for name, task in (("clean", result.tasks[0]), ("corrupted", worse)):
        print(f"{name} test images")
        show(result, found, task)
        write_drawing(folder / f"e5_{name}.svg", draw_accuracies(task, _BASE))
    quality = {name: asdict(value) for name, value in found.items()}
    write_record(folder / "e5.json", {"quality": quality, "comparison": asdict(result), "corrupted": asdict(worse)})


def _filters(args: argparse.Namespace, noisy: pa.Table, trusted: pa.Table) -> dict[str, str]:
    base = train_filter(args, _BASE, noisy)
    scale = SCALES[args.scale]
    whole = configure("dfn", Training, args.folder, scale.network, scale.networks)
    tuning = [f'model.weights="{base}"', f"samples_seen={whole.samples_seen // 4}", "optimizer.learning_rate=1.0e-3"]
    return {
        _BASE: base,
        "tuned": train_filter(args, "tuned", trusted, tuning),
        "tuned_averaged": train_filter(args, "tuned_averaged", trusted, [*tuning, "average_with_start=0.5"]),
    }


def _selections(models: Iterable[str], pool: int) -> dict[str, list[dict[str, object]]]:
    """What each network selects of the pool, and what the base selects with all trusted pairs beside it."""
    untrusted: dict[str, object] = {"step": "filter", "name": "untrusted", "column": "trusted", "max": 0}
    score, _ = by_filter([_BASE])[_BASE]
    both = {"step": "filter", "score": score["name"], "keep": round(KEPT * pool), "per": "trusted"}
    return {
        **{name: [untrusted, *steps] for name, steps in by_filter(models).items()},
        "base_and_trusted": [score, both],
        "unfiltered": [untrusted],
    }


def _changes(folder: Path) -> list[str]:
    """The pool of both parts, and a task for each corruption."""
    columns = {"format": "parquet", "image_column": "jpg"}
    sources = [
        {**columns, "path": f"{folder}/e5_parts/{name}/*.parquet", "text_column": "caption", "name": name}
        for name in ("pool", "trusted")
    ]
    task = configure("e1", Comparison, folder).evaluation[0].model_dump(mode="json", exclude_unset=True)
    tests = [
        {**task, "name": kind, "data": {**columns, "path": f"{folder}/e5_test/{kind}/*.parquet"}}
        for kind in CORRUPTIONS
    ]
    return [f"pool={json.dumps({'sources': sources})}", f"evaluation={json.dumps([task, *tests])}"]


if __name__ == "__main__":
    run(arguments(__doc__))
