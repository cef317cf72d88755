"""Filter networks that differ in what they were trained on, and the comparison of what each of them keeps."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from examples.experiments.cifar import SCALES, configure, write_pairs
from pipeline.comparison.settings import Comparison
from pipeline.training.settings import Training
from pipeline.training.trainer import run_training

TOWERS = "examples/experiments/dfn_towers.json"
KEPT = 0.6
"""About the share of the pool's captions that are true."""


def train_filter(args: argparse.Namespace, name: str, pairs: pa.Table, changes: Sequence[str] = ()) -> str:
    """Trains the network of dfn.yaml on other pairs, on a Ray that is up; gives the folder of the model.

    Args:
        args: of the command line.
        name: of the network.
        pairs: what it is trained on; left as they are where they were written before.
        changes: to dfn.yaml.
    """
    home: Path = args.folder / "filters" / name
    if not (home / "pairs").exists():
        write_pairs(home / "pairs", pairs)
    other = [f'data.0.pool.path="{home}/pairs/*.parquet"', f'workspace="{home}"']
    scale = SCALES[args.scale]
    return run_training(
        configure("dfn", Training, args.folder, scale.network, scale.networks, other, changes)
    ).model_path


def filtered(score: str, model: str, keep_fraction: float) -> list[dict[str, object]]:
    """The steps that keep what a network finds best aligned."""
    return [
        {"step": "score", "name": score, "model": model},
        {"step": "filter", "score": score, "keep_fraction": keep_fraction},
    ]


def comparison(
    args: argparse.Namespace,
    name: str,
    models: Mapping[str, str],
    selections: Mapping[str, Sequence[object]],
    changes: Sequence[str] = (),
) -> Comparison:
    """That of e1.yaml with other selections, in a workspace of its own, with three seeds.

    Args:
        args: of the command line.
        name: of the experiment.
        models: folders of filter networks, by name.
        selections: lists of steps by name, the first of which is the baseline.
        changes: to e1.yaml.
    """
    known = {key: {"library": "open_clip", "name": TOWERS, "weights": weights} for key, weights in models.items()}
    own = [
        f'workspace="{args.folder}/{name}"',
        f"models={json.dumps(known)}",
        f"selections={json.dumps(selections)}",
        "seeds=[0, 1, 2]",
    ]
    return configure("e1", Comparison, args.folder, own, changes, SCALES[args.scale].training, args.overrides)


def by_filter(names: Iterable[str], keep_fraction: float = KEPT) -> dict[str, list[dict[str, object]]]:
    """A selection for each filter network, called as that is."""
    return {name: filtered(f"alignment_{name}", name, keep_fraction) for name in names}
