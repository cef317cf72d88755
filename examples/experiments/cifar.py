"""CIFAR-10 as a pool with misaligned captions and a known truth, and the configs that work on it.

Captions are made from the worst of CIFAR-10N's human labels (Wei et al. 2022), 40 % of which are wrong. The 50,000
training images are split once, by seed, into three parts that share no image:

    trusted   pairs with captions by the true label, for filters to learn from
    spare     pairs as noisy as the pool's, where an experiment needs more of those than the pool has
    pool      what is filtered; `true_label` is metadata that no step reads

The templates of captions are drawn by a sample's position in the original training set.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from operators.errors import InputError
from operators.hashing import generator
from pipeline.arguments import add_overrides
from pipeline.config.loader import load_config
from pipeline.training.settings import PLACE

HERE = Path(__file__).parent
M = TypeVar("M", bound=BaseModel)

_FOLDER = "runs/cifar"
"""What the configs call the folder of an experiment."""
_SHARDS = 8


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        trusted, spare, pool, test: samples of each part.
        network: changes to dfn.yaml.
        networks: further ones where an experiment trains several networks.
        training: changes to e1.yaml, in what every experiment takes from it.
        filters: changes to the filters of e1.yaml that are trained in a step.
    """

    trusted: int = 5_000
    spare: int = 10_000
    pool: int = 35_000
    test: int = 10_000
    network: tuple[str, ...] = ()
    networks: tuple[str, ...] = ("samples_seen=120000",)
    training: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()


def _trained_on(samples: int) -> tuple[str, ...]:
    steps = ("binary_images", "masked_autoencoder")
    return tuple(f"selections.{step}.0.samples_seen={samples}" for step in steps)


SCALES = {
    "tiny": Scale(
        trusted=96,
        spare=96,
        pool=320,
        test=64,
        network=("samples_seen=128", "batch_size=32", "schedule.warmup_steps=1"),
        networks=(),
        training=(
            "training.samples_seen=64",
            "training.batch_size=32",
            "training.schedule.warmup_steps=1",
            "seeds=[0]",
        ),
        filters=_trained_on(256),
    ),
    "small": Scale(),
    "full": Scale(
        network=("samples_seen=2000000",),
        networks=(),
        training=(
            "training.samples_seen=1000000",
            "training.model.name=examples/experiments/dfn_towers.json",
            "training.augment.padding=8",
        ),
        filters=_trained_on(1_000_000),
    ),
}


def arguments(doc: str | None) -> argparse.Namespace:
    """The command line that all experiments share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 with CIFAR-10N's labels, in Parquet")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--folder", type=Path, help="for all that is written (default: runs/cifar/<scale>)")
    parser.add_argument("--cpus", type=int, help="that may be used (default: all)")
    add_overrides(parser)
    args = parser.parse_args()
    args.folder = args.folder or Path(_FOLDER) / args.scale
    return args


def configure(name: str, model: type[M], folder: Path, *changes: Sequence[str]) -> M:
    """A config beside this file with its paths in an experiment's folder, where that form of it is left.

    Args:
        name: of the file.
        model: the settings it holds.
        folder: of the experiment.
        changes: as of `--set`; later ones win.
    """
    path = folder / f"{name}.yaml"
    path.write_text((HERE / f"{name}.yaml").read_text().replace(_FOLDER, str(folder)))
    return load_config(str(path), model, [change for some in changes for change in some])


def prepare(data: Path, folder: Path, scale: Scale, seed: int = 0) -> None:
    """Writes the parts of the experiment into a folder, unless they are there.

    Raises:
        InputError: the data are not there, or the folder holds those of another scale.
    """
    sizes = {name: getattr(scale, name) for name in ("trusted", "spare", "pool", "test")}
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "parts.json"
    if record.exists():
        if (there := json.loads(record.read_text())) != sizes:
            raise InputError(f"{folder} must hold {sizes}, got {there}: give another --folder")
        return
    train, test = (_read(data, name) for name in ("train", "test"))
    classes = json.loads((data / "classes.json").read_text())
    row_N = generator(seed, "cifar", "parts").permutation(train.num_rows)
    template_N = generator(seed, "cifar", "templates").integers(0, len(_templates()), train.num_rows)
    start = 0
    for name in ("trusted", "spare", "pool"):
        rows = train.take(pa.array(np.sort(row_N[start : start + sizes[name]])))
        start += sizes[name]
        label = "label" if name == "trusted" else "worse_label"
        write_pairs(folder / name, pairs(rows, label, classes, template_N))
    write_pairs(folder / "test", test.slice(0, sizes["test"]).select(["index", "jpg", "label"]))
    (folder / "classes.json").write_text(json.dumps(classes))
    record.write_text(json.dumps(sizes))


def pairs(rows: pa.Table, label: str, classes: Sequence[str], template_N: NDArray[np.integer]) -> pa.Table:
    """Rows of CIFAR-10 as pairs.

    Args:
        rows: of its training set.
        label: the column that captions are made from.
        classes: names by number.
        template_N: of each sample, by its position in the training set.

    Returns:
        the columns `index`, `jpg`, `caption`, `label` (what the caption says) and `true_label`.
    """
    templates = _templates()
    given = rows[label].to_pylist()
    chosen = template_N[rows["index"].to_numpy()]
    captions = [templates[i].replace(PLACE, classes[number]) for i, number in zip(chosen, given, strict=True)]
    columns = {"index": rows["index"], "jpg": rows["jpg"], "caption": captions, "label": given}
    return pa.table(columns | {"true_label": rows["label"]})


def write_pairs(folder: Path, table: pa.Table) -> None:
    """Writes a table as Parquet shards of about equal size; the folder is there once all of them are."""
    part = folder.with_name(f"{folder.name}.part")
    for earlier in (part, folder):
        shutil.rmtree(earlier, ignore_errors=True)
    part.mkdir(parents=True)
    ends = np.linspace(0, table.num_rows, _SHARDS + 1).astype(int)
    for i, (start, stop) in enumerate(pairwise(ends.tolist())):
        pq.write_table(table.slice(start, stop - start), part / f"{i:05d}.parquet")
    part.rename(folder)


def read_pairs(folder: Path) -> pa.Table:
    """What `write_pairs` wrote."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def _templates() -> list[str]:
    return (HERE / "templates.txt").read_text().splitlines()


def _read(data: Path, name: str) -> pa.Table:
    paths = sorted(data.glob(f"{name}-*.parquet"))
    if not paths:
        raise InputError(f"--data must hold {name}-*.parquet of CIFAR-10, got none in {data}")
    return pa.concat_tables([pq.read_table(path) for path in paths])
